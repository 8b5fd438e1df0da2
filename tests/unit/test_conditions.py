"""What is down is said at once, again while it lasts, and once more when it is over."""

from __future__ import annotations

from typing import Any

from runtime.conditions import OVER_AFTER_S, REPEAT_S, ConditionReporter, Down
from schemas.codec import codec
from schemas.topics import CONDITIONS


class World:
    def __init__(self) -> None:
        self.now, self.down = 1_790_000_000_000, list[Down]()
        self.reporter = ConditionReporter(self, "sender-sms", lambda: self.down, lambda: self.now)

    async def send(self, records: Any) -> None:
        raise AssertionError

    def said(self, after_s: float = 1) -> list[tuple[str, str, str | None]]:
        self.now += int(after_s * 1000)
        records = self.reporter.due()
        assert {record.topic for record in records} <= {CONDITIONS}
        found = [codec("Condition").decode(record.value) for record in records]
        assert all(c["stated_at"] == self.now and c["process"].startswith("sender-sms@") for c in found)
        return [(c["name"], c["state"], c["detail"]) for c in found]


def test_condition_is_said_when_it_begins_changes_lasts_and_ends() -> None:
    world = World()
    assert world.said() == []
    world.down = [Down("account", "sms-1", "401 20003", 5, 9, "sms")]
    assert world.said() == [("sms-1", "down", "401 20003")]
    assert world.said() == []
    world.down = [Down("account", "sms-1", "timeout"), Down("sender", "sms", "too many")]
    assert world.said() == [("sms-1", "down", "timeout"), ("sms", "down", "too many")]
    assert len(world.said(REPEAT_S)) == 2
    world.down = []
    assert world.said() == [("sms-1", "up", None), ("sms", "up", None)]
    assert world.said(REPEAT_S) == []


def test_said_again_often_enough_not_to_be_taken_for_over() -> None:
    assert 2 * REPEAT_S < OVER_AFTER_S
