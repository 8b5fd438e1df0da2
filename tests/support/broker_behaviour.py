"""What Kafka does for us, as one suite: it runs on the broker in memory and on a real one, so that the former cannot drift.

May import pytest and the clients of runtime/kafka. Never: what a record means.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from runtime.clock import system_clock
from runtime.errors import TooLargeError, TopicsError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import BEGINNING, Consumer, FencedError
from runtime.kafka.time_range import TimeRange
from runtime.records import ConsumerRecord, ProducerRecord

MAX_POLLS = 300
"""Calls of a tenth of a second each until something must have come."""


class Publisher(Protocol):
    """What both producers are."""

    def publish(self, records: Sequence[ProducerRecord]) -> None: ...


class Cluster(Protocol):
    """A broker, real or not."""

    @property
    def producer(self) -> Publisher:
        """One for all records outside of transactions."""

    def topic(self, partitions: int = 1, max_bytes: int | None = None) -> str:
        """A new topic."""

    def consumer(self, group: str | None = None) -> Consumer:
        """One that notices ends; closed by the fixture."""

    def transaction(self, records: Sequence[ProducerRecord]) -> Callable[[bool], None]:
        """Publish under a transaction, and what ends it: committed or not."""

    def stand_still(self, consumer: Consumer, others: Callable[[], object]) -> None:
        """Let a member be silent until its group has replaced it; the others are kept alive meanwhile."""


class Member:
    """A consumer in a group, and what was given to it and taken from it."""

    def __init__(self, cluster: Cluster, group: str, topic: str, starts: dict[Partition, int] | None = None) -> None:
        self.consumer = cluster.consumer(group)
        self.owned: set[Partition] = set()
        self.calls: list[str] = []
        self.records: list[ConsumerRecord] = []
        self.commits_when_revoked: dict[Partition, int] = {}
        self._starts = starts
        self.consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def _assigned(self, partitions: list[Partition]) -> dict[Partition, int] | None:
        self.calls.append("assign")
        self.owned.update(partitions)
        return self._starts

    def _revoked(self, partitions: list[Partition]) -> None:
        self.calls.append("revoke")
        if self.commits_when_revoked:
            self.consumer.commit(self.commits_when_revoked)
        self.owned.difference_update(partitions)

    def _lost(self, partitions: list[Partition]) -> None:
        self.calls.append("lost")
        self.owned.clear()

    def poll(self) -> None:
        self.records += self.consumer.consume(100, 0.1)


def until(done: Callable[[], bool], *polls: Callable[[], object]) -> None:
    for _ in range(MAX_POLLS):
        if done():
            return
        for poll in polls:
            poll()
    pytest.fail("it did not come true")


def read(consumer: Consumer, partitions: Sequence[Partition]) -> list[ConsumerRecord]:
    """What there is of these, to their ends."""
    found: list[ConsumerRecord] = []
    consumer.eof_partitions.clear()
    consumer.assign(dict.fromkeys(partitions, BEGINNING))

    def poll() -> None:
        found.extend(consumer.consume(100, 0.1))

    until(lambda: consumer.eof_partitions.issuperset(partitions), poll)
    return found


def some(topic: str, *values: bytes, partition: int = 0) -> list[ProducerRecord]:
    return [ProducerRecord(topic, b"k", value, partition=partition) for value in values]


def values(records: Sequence[ConsumerRecord]) -> list[bytes | None]:
    return [record.value for record in records]


class BrokerBehaviour:
    """Run by a class with a fixture `cluster`."""

    @pytest.fixture
    def cluster(self) -> Iterator[Cluster]:
        raise NotImplementedError

    def test_records_come_as_they_were_published_in_their_order(self, cluster: Cluster) -> None:
        topic = cluster.topic()
        headers: Any = [("a", b"1"), ("a", b"\xff"), ("empty", b""), ("none", None)]
        cluster.producer.publish(
            [ProducerRecord(topic, b"k", b"v", headers), ProducerRecord(topic, None, None), *some(topic, b"")]
        )
        found = read(cluster.consumer(), [(topic, 0)])
        assert [(r.topic, r.partition, r.offset, r.key, r.value) for r in found] == [
            (topic, 0, 0, b"k", b"v"),
            (topic, 0, 1, None, None),
            (topic, 0, 2, b"k", b""),
        ]
        assert [list(record.headers) for record in found] == [headers, [], []]

    def test_member_that_asks_anew_reads_on_commits_and_gives_back(self, cluster: Cluster) -> None:
        topic = cluster.topic(2)
        cluster.producer.publish([*some(topic, b"1", b"2"), *some(topic, b"a", partition=1)])
        member = Member(cluster, "anew", topic)
        until(lambda: len(member.records) == 3, member.poll)
        member.consumer.pause([(topic, 1)])
        member.consumer._read_again()
        cluster.producer.publish([*some(topic, b"3"), *some(topic, b"b", partition=1)])
        until(lambda: len(member.records) == 4, member.poll)
        member.poll()
        assert values(member.records)[3:] == [b"3"], "nothing twice, and what is paused stays so"
        member.consumer.resume([(topic, 1)])
        until(lambda: len(member.records) == 5, member.poll)
        member.consumer.commit(member.consumer.progress())
        other = Member(cluster, "anew", topic)
        until(lambda: len(other.owned) == len(member.owned) == 1, member.poll, other.poll)
        cluster.producer.publish([*some(topic, b"4"), *some(topic, b"c", partition=1)])
        until(lambda: len(member.records) + len(other.records) == 7, member.poll, other.poll)
        assert sorted(values([*member.records[5:], *other.records]), key=str) == [b"4", b"c"]

    def test_key_chooses_the_partition_by_its_murmur2(self, cluster: Cluster) -> None:
        topic = cluster.topic(4)
        keys = [b"t:u%d" % n for n in range(12)] + [b"", b"x", "tenant:käufer".encode()]
        cluster.producer.publish([ProducerRecord(topic, key, b"v") for key in keys])
        chosen = {record.key: record.partition for record in read(cluster.consumer(), [(topic, n) for n in range(4)])}
        assert chosen == PARTITIONS

    def test_group_reads_on_where_it_committed(self, cluster: Cluster) -> None:
        topic = cluster.topic()
        cluster.producer.publish(some(topic, b"0", b"1", b"2"))
        first = Member(cluster, topic, topic)
        until(lambda: len(first.records) == 3, first.poll)
        first.consumer.commit({(topic, 0): 2})
        first.consumer.close()
        assert first.calls == ["assign", "revoke"]
        second = Member(cluster, topic, topic)
        until(lambda: bool(second.records), second.poll)
        assert values(second.records) == [b"2"]

    def test_group_without_a_commit_reads_from_the_beginning(self, cluster: Cluster) -> None:
        topic = cluster.topic()
        cluster.producer.publish(some(topic, b"0"))
        member = Member(cluster, topic, topic)
        until(lambda: bool(member.records), member.poll)
        assert values(member.records) == [b"0"]
        assert member.consumer.committed([(topic, 0)]) == {(topic, 0): (-1, "")}

    def test_owner_may_start_elsewhere_than_where_it_committed(self, cluster: Cluster) -> None:
        topic = cluster.topic()
        cluster.producer.publish(some(topic, b"0", b"1"))
        member = Member(cluster, topic, topic, {(topic, 0): 1})
        until(lambda: bool(member.records), member.poll)
        assert values(member.records) == [b"1"]

    def test_commit_keeps_its_metadata_and_the_last_one_stands(self, cluster: Cluster) -> None:
        topic = cluster.topic(2)
        member = Member(cluster, topic, topic)
        until(lambda: bool(member.owned), member.poll)
        member.consumer.commit({(topic, 0): 3, (topic, 1): 4}, {(topic, 0): "7:ff:1"})
        assert member.consumer.committed([(topic, 0), (topic, 1)]) == {(topic, 0): (3, "7:ff:1"), (topic, 1): (4, "")}
        member.consumer.commit({(topic, 0): 1})
        assert member.consumer.committed([(topic, 0)]) == {(topic, 0): (1, "")}

    def test_second_member_gets_its_half_after_the_first_has_given_it_back(self, cluster: Cluster) -> None:
        topic = cluster.topic(4)
        one = Member(cluster, topic, topic)
        until(lambda: len(one.owned) == 4, one.poll)
        one.commits_when_revoked = {(topic, 3): 1}
        two = Member(cluster, topic, topic)
        until(lambda: len(one.owned) == len(two.owned) == 2, one.poll, two.poll)
        assert one.owned | two.owned == {(topic, n) for n in range(4)}
        assert one.calls == ["assign", "revoke", "assign"]
        assert one.consumer.committed([(topic, 3)]) == {(topic, 3): (1, "")}, "it may commit what it gives back"

    def test_member_that_leaves_is_followed_by_the_others(self, cluster: Cluster) -> None:
        topic = cluster.topic(2)
        one, two = Member(cluster, topic, topic), Member(cluster, topic, topic)
        until(lambda: len(one.owned) == len(two.owned) == 1, one.poll, two.poll)
        two.consumer.close()
        until(lambda: len(one.owned) == 2, one.poll)

    def test_replaced_owner_is_refused_and_changes_nothing(self, cluster: Cluster) -> None:
        topic = cluster.topic()
        cluster.producer.publish(some(topic, b"0", b"1"))
        old = Member(cluster, topic, topic)
        until(lambda: len(old.records) == 2, old.poll)
        old.consumer.commit({(topic, 0): 1}, {(topic, 0): "2:0"})
        new = Member(cluster, topic, topic)
        cluster.stand_still(old.consumer, new.poll)
        until(lambda: bool(new.owned), new.poll)
        with pytest.raises(FencedError):
            old.consumer.commit({(topic, 0): 2}, {(topic, 0): "2:1"})
        assert old.consumer.progress() == {}
        assert new.consumer.committed([(topic, 0)]) == {(topic, 0): (1, "2:0")}
        new.consumer.commit({(topic, 0): 2})
        with pytest.raises(FencedError):
            until(lambda: False, old.poll)
        assert old.calls == ["assign", "revoke"]
        until(lambda: old.calls[-1] == "assign" and len(old.owned | new.owned) == 1, old.poll, new.poll)

    def test_ends_are_noticed_each_time_they_are_reached(self, cluster: Cluster) -> None:
        topic, consumer = cluster.topic(2), cluster.consumer()
        cluster.producer.publish(some(topic, b"0"))
        ends = [(topic, 0), (topic, 1)]
        assert values(read(consumer, ends)) == [b"0"]
        assert values(read(consumer, ends)) == [b"0"], "the same reader, once more"
        consumer.eof_partitions.clear()
        cluster.producer.publish(some(topic, b"1"))
        found: list[ConsumerRecord] = []
        until(lambda: (topic, 0) in consumer.eof_partitions, lambda: found.extend(consumer.consume(100, 0.1)))
        assert values(found) == [b"1"]

    def test_paused_partition_gives_nothing_and_goes_on_where_it_was(self, cluster: Cluster) -> None:
        topic, consumer = cluster.topic(2), cluster.consumer()
        consumer.assign({(topic, 0): 0, (topic, 1): 0})
        consumer.pause([(topic, 0)])
        cluster.producer.publish([*some(topic, b"0", b"1"), *some(topic, b"other", partition=1)])
        found: list[ConsumerRecord] = []
        until(lambda: bool(found), lambda: found.extend(consumer.consume(100, 0.1)))
        for _ in range(5):
            found += consumer.consume(100, 0.05)
        assert values(found) == [b"other"]
        consumer.resume([(topic, 0)])
        until(lambda: len(found) == 3, lambda: found.extend(consumer.consume(1, 0.1)))
        assert values(found) == [b"other", b"0", b"1"]

    def test_transaction_is_read_once_it_is_committed(self, cluster: Cluster) -> None:
        topic, consumer = cluster.topic(), cluster.consumer()
        cluster.producer.publish(some(topic, b"before"))
        end = cluster.transaction(some(topic, b"inside"))
        cluster.producer.publish(some(topic, b"behind"))
        assert values(read(consumer, [(topic, 0)])) == [b"before"]
        assert consumer.watermark_offsets([(topic, 0)]) == {(topic, 0): (0, 1)}
        end(True)
        found = read(consumer, [(topic, 0)])
        assert [(record.offset, record.value) for record in found] == [(0, b"before"), (1, b"inside"), (2, b"behind")]
        assert consumer.watermark_offsets([(topic, 0)]) == {(topic, 0): (0, 4)}, "the marker has an offset as well"
        assert consumer.position((topic, 0)) == 4
        assert consumer.progress() == {(topic, 0): 4}

    def test_aborted_transaction_is_never_read_and_passed(self, cluster: Cluster) -> None:
        topic, consumer = cluster.topic(), cluster.consumer()
        cluster.transaction(some(topic, b"inside", b"as well"))(False)
        cluster.producer.publish(some(topic, b"behind"))
        assert [(r.offset, r.value) for r in read(consumer, [(topic, 0)])] == [(3, b"behind")]
        end = cluster.topic()
        cluster.transaction(some(end, b"inside"))(False)
        assert read(consumer, [(end, 0)]) == []
        assert consumer.progress() == {(end, 0): 2}

    def test_what_is_too_large_is_named_and_the_others_are_published(self, cluster: Cluster) -> None:
        small, large = cluster.topic(max_bytes=2_000), cluster.topic()
        big = os.urandom(5_000)  # which no compression makes smaller
        records = [*some(small, b"a", big, b"b"), *some(large, big)]
        with pytest.raises(TooLargeError) as raised:
            cluster.producer.publish(records)
        assert list(raised.value.records) == [records[1]]
        assert values(read(cluster.consumer(), [(small, 0)])) == [b"a", b"b"]
        assert values(read(cluster.consumer(), [(large, 0)])) == [big]

    def test_topic_that_is_not_there_is_said_so(self, cluster: Cluster) -> None:
        topic, consumer = cluster.topic(3), cluster.consumer()
        assert consumer.partitions_for_topic(topic) == [(topic, 0), (topic, 1), (topic, 2)]
        with pytest.raises(TopicsError):
            consumer.partitions_for_topic("notify.nowhere")

    def test_offsets_are_found_by_time(self, cluster: Cluster) -> None:
        topic, consumer = cluster.topic(), cluster.consumer()
        cluster.producer.publish(some(topic, b"0", b"1"))
        at = read(consumer, [(topic, 0)])[0].timestamp
        assert consumer.offsets_for_times({(topic, 0): at}) == {(topic, 0): 0}
        assert consumer.offsets_for_times({(topic, 0): at + 3_600_000}) == {(topic, 0): 2}, (
            "the end, where nothing is that late"
        )

    def test_range_of_time_is_read_to_its_end_across_partitions(self, cluster: Cluster) -> None:
        topic, consumer = cluster.topic(3), cluster.consumer()
        for value, partition in ((b"before", 0), (b"first", 1), (b"second", 0), (b"after", 0), (b"later", 1)):
            cluster.producer.publish(some(topic, value, partition=partition))
            written_at = system_clock()
            until(lambda at=written_at: system_clock() > at + 1, lambda: time.sleep(0.001))  # type: ignore[misc]
        cluster.transaction(some(topic, b"aborted"))(False)
        at = {record.value: record.timestamp for record in read(cluster.consumer(), [(topic, 0), (topic, 1)])}
        for since, until_, expected in (
            (at[b"first"], at[b"after"], [b"first", b"second"]),
            (at[b"after"], at[b"later"] + 3_600_000, [b"after", b"later"]),  # to the end, which is an aborted record
            (0, at[b"before"], []),
            (at[b"later"] + 3_600_000, at[b"later"] + 7_200_000, []),
        ):
            found = TimeRange(consumer, topic, since, until_)
            assert sorted(value for records in found for value in values(records) if value) == expected
            assert found.total >= len(expected)


PARTITIONS: dict[bytes | None, int] = {
    **{b"t:u%d" % n: number for n, number in enumerate((2, 3, 1, 3, 1, 0, 0, 1, 3, 2, 0, 0))},
    b"": 1,
    b"x": 2,
    "tenant:käufer".encode(): 3,
}
"""Key → partition of four, as Kafka's own client chooses it."""
