"""What a consumer leaves out when its partitions change hands within one call, and what it does about a stalled client."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from runtime.kafka.client import EXIT_FATAL
from runtime.kafka.consumer import STALL_CHECK_S, Consumer
from runtime.settings import KafkaSettings


class Message:
    """A record as librdkafka gives it."""

    def __init__(self, offset: int, partition: tuple[str, int] = ("t", 0)) -> None:
        self._offset = offset
        self._topic, self._partition = partition

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return self._partition

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


HERE, ELSEWHERE = ("t", 0), ("t", 1)


class Cluster:
    """Two partitions, a client that fetches what `fetched` says, and the clock: a poll that finds nothing takes a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.ends = {HERE: 7, ELSEWHERE: 7}
        self.fetched = {HERE: True, ELSEWHERE: True}
        self.assigned = 0
        self.asked = 0
        self.ended = list[int]()
        self._given = dict(self.ends)
        monkeypatch.setattr(os, "_exit", self._end)
        self.consumer = Consumer(
            KafkaSettings(), client_id="test", group=None, library=lambda _: self, monotonic=lambda: self.now
        )
        self.consumer.assign(self.ends)

    def _end(self, code: int) -> None:
        self.ended.append(code)
        raise SystemExit(code)

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned += 1

    def pause(self, partitions: list[TopicPartition]) -> None:
        pass

    resume = pause

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked += 1
        return [TopicPartition(it.topic, it.partition, self.ends[it.topic, it.partition]) for it in partitions]

    def poll(self, timeout_s: float) -> Message | None:
        for partition, end in self.ends.items():
            if self.fetched[partition] and self._given[partition] < end:
                self._given[partition] += 1
                return Message(self._given[partition] - 1, partition)
        self.now += 1
        return None

    def read(self, seconds: float) -> int:
        """How many records come in that time, unless the process ends."""
        until, found = self.now + seconds, 0
        while self.now < until and not self.ended:
            with suppress(SystemExit):
                found += len(self.consumer.consume(1, 1))
        return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


@pytest.mark.parametrize("busy", [False, True], ids=["silence", "others have traffic"])
@pytest.mark.parametrize("helps", [True, False])
def test_records_that_are_not_fetched_are_asked_for_anew_before_the_process_ends(
    cluster: Cluster, helps: bool, busy: bool
) -> None:
    cluster.fetched[HERE] = False
    cluster.ends[HERE] = 9
    for _ in range(30):  # a stalled client is found within half a minute
        cluster.ends[ELSEWHERE] += busy
        cluster.read(1)
        cluster.fetched[HERE] = helps and cluster.assigned > 1
    assert cluster.assigned == 2
    assert helps is (cluster.consumer.position(HERE) == 9)
    assert cluster.ended == ([] if helps else [EXIT_FATAL])


def test_record_that_comes_while_it_is_asked_for_is_no_stall(cluster: Cluster) -> None:
    """Each comes just before the question, and is read just after it."""
    for _ in range(10):
        asked = cluster.asked
        cluster.fetched[HERE] = False
        cluster.ends[HERE] += 1
        while cluster.asked == asked:
            cluster.read(1)
        cluster.fetched[HERE] = True
        assert cluster.read(1) == 1
    assert (cluster.assigned, cluster.ended) == (1, [])


def test_what_is_paused_is_no_stall(cluster: Cluster) -> None:
    cluster.fetched[HERE] = False
    cluster.ends[HERE] = 9
    cluster.consumer.pause([HERE])
    cluster.read(10 * STALL_CHECK_S)
    cluster.consumer.resume([HERE])
    assert cluster.asked > 5
    assert (cluster.assigned, cluster.ended) == (1, [])


def test_one_question_is_asked_of_all_partitions_and_none_by_who_is_behind(cluster: Cluster) -> None:
    cluster.read(100)
    assert 100 / STALL_CHECK_S - 2 < cluster.asked < 100 / STALL_CHECK_S + 1, "of many, each would wait for a fetch"
    asked = cluster.asked
    cluster.ends[HERE] += 10_000
    assert cluster.read(1) == 10_000
    assert cluster.asked - asked <= 1
