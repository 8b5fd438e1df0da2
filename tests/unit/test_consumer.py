"""What a consumer leaves out when its partitions change hands within one call, and what it does about a stalled client."""

from __future__ import annotations

import os
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from runtime.kafka.client import EXIT_FATAL
from runtime.kafka.consumer import STALL_CHECK_S, Consumer
from runtime.settings import KafkaSettings


class Message:
    """A record as librdkafka gives it."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"v"

    def headers(self) -> None:
        return None


class Library:
    """librdkafka's consumer: a poll, then what is queued behind it; the partitions may move in either call."""

    def __init__(self, moves_in: str | None) -> None:
        self._moves_in = moves_in
        self._assigned: Any = None
        self.assigned: list[dict[tuple[str, int], int]] = []

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self._assigned, self._revoked = on_assign, on_revoke

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned.append({(it.topic, it.partition): it.offset for it in partitions})

    def _move(self, call: str) -> None:
        if call == self._moves_in:
            self._revoked(self, [TopicPartition("t", 0)])
            self.give()

    def give(self) -> None:
        """The group gives partition 0, from offset 7 on."""
        self._assigned(self, [TopicPartition("t", 0)])

    def poll(self, timeout_s: float) -> Message:
        self._move("poll")
        return Message(7)

    def consume(self, count: int, timeout_s: float) -> list[Message]:
        self._move("consume")
        return [Message(8)]


@pytest.mark.parametrize(
    ("moves_in", "offsets", "goes_on_at"), [(None, [7, 8], 9), ("poll", [7, 8], 9), ("consume", [], 7)]
)
def test_what_was_read_before_the_partitions_moved_is_left_out_and_what_is_ours_is_read_again(
    moves_in: str | None, offsets: list[int], goes_on_at: int
) -> None:
    library = Library(moves_in)
    consumer = Consumer(KafkaSettings(), client_id="test", group="g", library=lambda _: library)
    consumer.subscribe(["t"], on_assign=lambda _: {("t", 0): 7})
    library.give()
    assert [record.offset for record in consumer.consume(10, 1)] == offsets
    assert consumer.position(("t", 0)) == goes_on_at
    anew = [{("t", 0): 7}] if moves_in == "consume" else []
    assert library.assigned[1 + bool(moves_in) :] == anew, "some of what was left out may be of the new assignment"


class Stuck(Library):
    """Owns a partition with records up to 9 and fetches none until it is assigned anew, if then."""

    def __init__(self, *, helps: bool) -> None:
        super().__init__(None)
        self._helps = helps
        self.paused: list[tuple[str, int]] = []

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused += [(it.topic, it.partition) for it in partitions]

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 9

    def poll(self, timeout_s: float) -> Message | None:  # type: ignore[override]
        return Message(7) if self._helps and len(self.assigned) > 1 else None


@pytest.mark.parametrize("helps", [True, False])
def test_records_that_are_not_fetched_are_asked_for_anew_before_the_process_ends(
    helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, ended = [0.0], list[int]()
    monkeypatch.setattr(os, "_exit", ended.append)
    library = Stuck(helps=helps)
    consumer = Consumer(
        KafkaSettings(), client_id="test", group="g", library=lambda _: library, monotonic=lambda: now[0]
    )
    consumer.subscribe(["t"], on_assign=lambda _: {("t", 0): 7})
    library.give()
    read = []
    while now[0] <= 2 * STALL_CHECK_S + 1 and not ended:
        read += consumer.consume(1, 1)
        now[0] += 1
    assert library.assigned[1] == {("t", 0): 7}
    assert bool(read) is helps
    assert ended == ([] if helps else [EXIT_FATAL])
