"""Doubts about a vendor that knows our ids, with the real sender, broker and timers: each message is taken once, and none is flagged."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.conftest import until
from tests.integration.pipeline import World, world
from tests.support.accounts import account
from tests.support.made import message as message_of

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.kafka

EACH = 500


@pytest.mark.parametrize("killed", [False, True], ids=["lost answers", "lost answers and a kill"])
def test_push_whose_first_answer_was_lost_is_taken_once_and_not_flagged(
    world: World, killed: bool, tmp_path: Path
) -> None:
    mark, now = uuid.uuid4().hex[:12], int(time.time() * 1000)
    messages = [
        message_of(
            message_id=str(uuid.uuid4()),
            notification_id=str(uuid.uuid4()),
            user_id=None,
            channel="push",
            platform="onesignal",
            address=f"{mark}-{n}",
            title="T",
            body="B",
            delivery="at_most_once" if n % 2 else "at_least_once",
            routed_at=now,
        )
        for n in range(2 * EACH)
    ]
    made = {message["notification_id"] for message in messages}
    # A breaker that stays closed: this is about messages.
    app = account("onesignal", tmp_path, world.port, timeout_s=5, rate_per_second=None, breaker={"failures": 1_000_000})
    with world.accounts([app]):
        world.fault(kind="onesignal", mode="drop_after_accept", match=mark)
        world.dispatch(messages)
        world.run("timers")
        sender = world.run("sender", "--channel", "push")
        if killed:
            until(lambda: len(world.accepted("onesignal", mark)) > EACH / 2, what="some are taken")
            sender.kill()
            sender.wait()
            world.run("sender", "--channel", "push")
        until(
            lambda: len(world.sent_messages(made)) == 2 * EACH,
            what="all are sent",
            found=lambda: Counter(
                (status["state"], status["reason"], status["detail"])
                for events in world.statuses(made).values()
                for status in events
            ),
        )
    accepted = world.accepted("onesignal", mark)
    assert (len(accepted), set(accepted.values())) == (2 * EACH, {1})
    statuses = [status for events in world.statuses(made).values() for status in events]
    assert {status["state"] for status in statuses} == {"retrying", "sent"}
    assert not any(status["possible_duplicate"] for status in statuses)
