"""Kafka in memory: topics, groups and transactions as a broker has them, below the clients of runtime/kafka.

The consumer is the real one, on a library that reads the logs here; so what is made up is what librdkafka and the broker do,
and no more of it than tests/support/broker_behaviour.py holds against both. Nothing here waits, and no time passes.

    a member of a group     gets, loses and is refused partitions as under the classic protocol with the range assignor
    a fenced one            `expire`: the group goes on without it; it learns that from its next call
    what is read            below the first open transaction, without markers and without what was aborted

May import runtime.kafka and confluent_kafka. Never: what a record means.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from runtime.clock import Clock, Monotonic
from runtime.errors import TooLargeError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import Consumer
from runtime.records import ConsumerRecord, ProducerRecord, size_of
from runtime.settings import KafkaSettings

_GONE = None
"""In a log: an offset under which there is no record to read."""


def murmur2(key: bytes) -> int:
    """The hash by which a key chooses its partition, as Java's client has it: positive, 31 bits."""
    mask, length = 0xFFFFFFFF, len(key)
    value = (0x9747B28C ^ length) & mask
    for at in range(0, length - length % 4, 4):
        part = int.from_bytes(key[at : at + 4], "little") * 0x5BD1E995 & mask
        part = (part ^ part >> 24) * 0x5BD1E995 & mask
        value = value * 0x5BD1E995 & mask ^ part
    if rest := key[length - length % 4 :]:
        value = (value ^ int.from_bytes(rest, "little")) * 0x5BD1E995 & mask
    value = (value ^ value >> 13) * 0x5BD1E995 & mask
    return (value ^ value >> 15) & 0x7FFFFFFF


@dataclass
class Log:
    """One partition. Its offsets are the places in `entries`."""

    entries: list[ConsumerRecord | None] = field(default_factory=list)
    open: list[int] = field(default_factory=list)
    """First offsets of the transactions that have not ended."""

    @property
    def end(self) -> int:
        """The offset up to which may be read."""
        return min(self.open, default=len(self.entries))

    def records(self) -> list[ConsumerRecord]:
        """What may be read."""
        return [entry for entry in self.entries[: self.end] if entry is not None]


@dataclass
class Group:
    """Its members in the order in which they joined, and what they committed."""

    members: list[Library] = field(default_factory=list)
    committed: dict[Partition, tuple[int, str]] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    """Members (by id) that still hold partitions of the assignment that ends."""


class MemoryBroker:
    """Every topic and group of one cluster. `clock` gives the records their times (ms)."""

    def __init__(self, clock: Clock = lambda: 0) -> None:
        self._clock = clock
        self._topics: dict[str, list[Log]] = {}
        self._limits: dict[str, int] = {}
        self._groups: dict[str, Group] = {}
        self._libraries: dict[int, tuple[Consumer, Library]] = {}
        self.published: list[ProducerRecord] = []
        """What producers wrote, in its order."""
        self.handed_out = 0
        """Records given to consumers, all told."""
        self.at_once = 1 << 30
        """Records, or ends of partitions, that one call of a consumer gets at the most."""
        self.slow = False
        """Whether questions about offsets and topics are answered with a time-out."""
        self.silent = False
        """Whether nothing is read."""
        self.before_commit: Callable[[Mapping[Partition, tuple[int, str]]], None] = lambda _: None
        """Called before a commit is taken; what it raises is raised to whoever commits."""
        self.before_publish: Callable[[Sequence[ProducerRecord]], None] = lambda _: None
        """Called before records are taken; what it raises is raised to whoever publishes."""

    # -- topics -----------------------------------------------------------------------------------------------------

    def create(self, topic: str, partitions: int, max_bytes: int = 1 << 30) -> None:
        """Make a topic that takes records of `max_bytes` at the most."""
        self._topics[topic] = [Log() for _ in range(partitions)]
        self._limits[topic] = max_bytes

    def limit(self, topic: str, max_bytes: int) -> None:
        """Change what a topic takes."""
        self._limits[topic] = max_bytes

    def log(self, partition: Partition) -> Log:
        return self._topics[partition[0]][partition[1]]

    def logs(self, topic: str) -> list[Log] | None:
        """The partitions of a topic, None where there is no such topic."""
        return self._topics.get(topic)

    def records(self, topic: str) -> list[ConsumerRecord]:
        """What may be read of a topic, partition by partition."""
        return [record for log in self._topics[topic] for record in log.records()]

    def append(self, record: ProducerRecord) -> ConsumerRecord:
        """Take a record in."""
        logs = self._topics[record.topic]
        number = record.partition
        if number < 0:
            number = random.randrange(len(logs)) if record.key is None else murmur2(record.key) % len(logs)
        log = logs[number]
        made = ConsumerRecord(
            record.topic, number, len(log.entries), self._clock(), record.key, record.value, tuple(record.headers)
        )
        log.entries.append(made)
        return made

    def drop(self, partition: Partition, offsets: Iterable[int]) -> None:
        """Take records away, as compaction and retention do."""
        for offset in offsets:
            self.log(partition).entries[offset] = _GONE

    def transaction(self, records: Sequence[ProducerRecord]) -> Callable[[bool], None]:
        """Take records in under an open transaction; what is returned ends it, committed or not."""
        made = [self.append(record) for record in records]
        first: dict[Partition, int] = {}
        for record in made:
            first.setdefault((record.topic, record.partition), record.offset)
        for partition, offset in first.items():
            self.log(partition).open.append(offset)

        def end(commit: bool) -> None:
            for partition, offset in first.items():
                self.log(partition).open.remove(offset)
                self.log(partition).entries.append(_GONE)  # the marker
            if not commit:
                for record in made:
                    self.drop((record.topic, record.partition), [record.offset])

        return end

    # -- clients ----------------------------------------------------------------------------------------------------

    def producer(self) -> MemoryProducer:
        return MemoryProducer(self)

    def consumer(
        self, group: str | None = None, *, detect_eof: bool = False, monotonic: Monotonic = lambda: 0.0
    ) -> Consumer:
        """A real consumer that reads here."""
        library = Library(self, group)
        made = Consumer(
            KafkaSettings(),
            client_id="memory",
            group=group,
            detect_eof=detect_eof,
            monotonic=monotonic,
            library=lambda _: library,
        )
        self._libraries[id(made)] = made, library
        return made

    def expire(self, consumer: Consumer, *, stopped: bool = False) -> None:
        """The group goes on without a consumer that has not polled for too long.

        `stopped`: the whole process stood still, heartbeats and all, or is no more. Where it goes on, it is called back with
        what it lost and not with what it has to give back. That alone is not held against a real broker.
        """
        library = self._libraries[id(consumer)][1]
        self.leave(library)
        library.expired = not stopped

    def give(self, consumer: Consumer, partitions: Iterable[Partition]) -> None:
        """Decide by hand what a member of a group gets from its next call on, in place of the range assignor."""
        library = self._libraries[id(consumer)][1]
        library.by_hand = [*partitions]
        self._rebalance(self.group(library.group))

    # -- groups -----------------------------------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        return self._groups.setdefault(name, Group())

    def join(self, member: Library) -> None:
        group = self.group(member.group)
        if member not in group.members:
            group.members.append(member)
        self._rebalance(group)

    def leave(self, member: Library) -> None:
        group = self.group(member.group)
        if member in group.members:
            group.members.remove(member)
            group.leaving.discard(id(member))
            self._rebalance(group)

    def _rebalance(self, group: Group) -> None:
        """Everybody gives back what they hold, in their next call, and only then is anything given."""
        for member in group.members:
            if member.stable:
                group.leaving.add(id(member))
            member.stable = False

    def ready(self, member: Library) -> bool:
        """Whether partitions may be given: nobody holds any of the assignment before."""
        return not self.group(member.group).leaving

    def share(self, member: Library) -> list[Partition]:
        """What the range assignor gives to a member, or whoever decides by hand."""
        if member.by_hand is not None:
            return member.by_hand
        given: list[Partition] = []
        for topic in member.topics:
            members = [each for each in self.group(member.group).members if topic in each.topics]
            count, at = len(self._topics.get(topic, ())), members.index(member)
            each, more = divmod(count, len(members))
            first = at * each + min(at, more)
            given += [(topic, number) for number in range(first, first + each + (at < more))]
        return given

    def refuses(self, topic: str, size: int) -> bool:
        """Whether a record of so many bytes is too large for its topic."""
        return size > self._limits[topic]


@dataclass(frozen=True, slots=True)
class MemoryPublishing:
    """What runtime.kafka's Publishing is, with everything acknowledged or refused at once."""

    refusal: TooLargeError | None

    def wait(self) -> None:
        """Raises the refusal, where there is one."""
        if self.refusal is not None:
            raise self.refusal


class MemoryProducer:
    """What runtime.kafka.Producer does, with every acknowledgement at once."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def start(self, records: Sequence[ProducerRecord]) -> MemoryPublishing:
        """As `publish`; what it raises is raised when it is waited for."""
        try:
            self.publish(records)
        except TooLargeError as exc:
            return MemoryPublishing(exc)
        return MemoryPublishing(None)

    def publish(self, records: Sequence[ProducerRecord]) -> None:
        """Take in everything but what is too large; raises TooLargeError for that."""
        if not records:
            return
        self._broker.before_publish(records)
        refused = []
        for record in records:
            if self._broker.refuses(record.topic, size_of(record.key, record.value, record.headers)):
                refused.append(record)
            else:
                self._broker.append(record)
                self._broker.published.append(record)
        if refused:
            raise TooLargeError(f"Kafka refuses a record of {refused[0].topic} for its size", refused)

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """As `publish`."""
        self.publish(records)

    def close(self) -> None: ...


class Message:
    """A record, or an error in a record's place, as librdkafka gives it."""

    __slots__ = ("_error", "_record")

    def __init__(self, record: ConsumerRecord, error: KafkaError | None = None) -> None:
        self._record, self._error = record, error

    def error(self) -> KafkaError | None:
        return self._error

    def topic(self) -> str:
        return self._record.topic

    def partition(self) -> int:
        return self._record.partition

    def offset(self) -> int:
        return self._record.offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self._record.timestamp

    def key(self) -> bytes | None:
        return self._record.key

    def value(self) -> bytes | None:
        return self._record.value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return list(self._record.headers) or None


def _event(code: int, topic: str = "", partition: int = 0, offset: int = 0) -> Message:
    return Message(ConsumerRecord(topic, partition, offset, 0, None, None), KafkaError(code))


class Library:
    """librdkafka's consumer: the part of confluent_kafka.Consumer that ours calls."""

    def __init__(self, broker: MemoryBroker, group: str | None) -> None:
        self.group = group or ""
        self.topics: list[str] = []
        self.stable = False
        """Whether it holds what the group gave it last."""
        self.expired = False
        self.by_hand: list[Partition] | None = None
        self._broker = broker
        self._next: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        """The ends that were told, by partition."""
        self._paused: set[Partition] = set()
        self._on: dict[Literal["assign", "revoke", "lost"], Callable[[Any, list[TopicPartition]], None]] = {}

    # -- the group --------------------------------------------------------------------------------------------------

    def subscribe(self, topics: list[str], *, on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.topics, self._on = topics, {"assign": on_assign, "revoke": on_revoke, "lost": on_lost}
        self._broker.join(self)

    def _notify(self, what: Literal["assign", "revoke", "lost"], partitions: Iterable[Partition]) -> None:
        self._on[what](self, [TopicPartition(*partition) for partition in partitions])

    def _follow_the_group(self) -> Message | None:
        """What the group has decided meanwhile: called back, or told in a record's place."""
        if not self._on:
            return None
        group = self._broker.group(self.group)
        if self not in group.members:
            if self._next:
                self._give_back("revoke" if self.expired else "lost")
            self._broker.join(self)
        if self.expired:
            self.expired = False
            return _event(KafkaError._MAX_POLL_EXCEEDED)
        if not self.stable:
            if id(self) in group.leaving:
                self._give_back("revoke")
                group.leaving.discard(id(self))
            if self._broker.ready(self):
                self.stable = True
                self._notify("assign", self._broker.share(self))
        return None

    def _give_back(self, how: Literal["revoke", "lost"]) -> None:
        held, self._next = [*self._next], {}
        self._notify(how, held)

    def close(self) -> None:
        if self._on:
            if self in self._broker.group(self.group).members:
                self._give_back("revoke")
            self._broker.leave(self)
            self._on.clear()

    # -- reading ----------------------------------------------------------------------------------------------------

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._next = {(it.topic, it.partition): max(0, it.offset) for it in partitions}
        self._ends.clear()
        self._paused.clear()

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._paused |= {(it.topic, it.partition) for it in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._paused -= {(it.topic, it.partition) for it in partitions}

    def poll(self, timeout_s: float) -> Message | None:
        if (event := self._follow_the_group()) is not None:
            return event
        return next(iter(self._take(1, self._broker.at_once)), None)

    def consume(self, count: int, timeout_s: float) -> list[Message]:
        if (event := self._follow_the_group()) is not None:
            return [event]
        return self._take(count, self._broker.at_once - 1)  # a poll came before it

    def _take(self, count: int, at_once: int) -> list[Message]:
        found: list[Message] = []
        count = 0 if self._broker.silent else min(count, at_once)
        for partition in [*self._next]:
            if partition in self._paused:
                continue
            log, offset = self._broker.log(partition), self._next[partition]
            end = log.end
            while offset < end and len(found) < count:
                if (entry := log.entries[offset]) is not None:
                    found.append(Message(entry))
                    self._broker.handed_out += 1
                offset += 1
            self._next[partition] = offset
            if offset >= end and self._ends.get(partition) != end and len(found) < count:
                self._ends[partition] = end
                found.append(_event(KafkaError._PARTITION_EOF, *partition, end))
        return found

    # -- offsets ----------------------------------------------------------------------------------------------------

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        wanted = {(it.topic, it.partition): (it.offset, it.metadata or "") for it in offsets}
        self._broker.before_commit(wanted)
        group = self._broker.group(self.group)
        # One that has to give back what it holds may commit until it does so.
        if self not in group.members or not (self.stable or id(self) in group.leaving):
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
        group.committed.update(wanted)
        return offsets

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._ask()
        held = self._broker.group(self.group).committed
        found = []
        for it in partitions:
            offset, metadata = held.get((it.topic, it.partition), (-1001, ""))
            found.append(TopicPartition(it.topic, it.partition, offset, metadata=metadata))
        return found

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._ask()
        found = []
        for it in partitions:
            log = self._broker.log((it.topic, it.partition))
            offset = next((record.offset for record in log.records() if record.timestamp >= it.offset), -1)
            if it.offset < 0:  # in place of a time: the end, or the beginning
                offset = log.end if it.offset == -1 else 0
            found.append(TopicPartition(it.topic, it.partition, offset))
        return found

    def list_topics(self, topic: str, timeout: float) -> Any:
        self._ask()
        logs = self._broker.logs(topic)
        error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART) if logs is None else None
        partitions = dict.fromkeys(range(len(logs or ())))
        return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions=partitions)})

    def _ask(self) -> None:
        if self._broker.slow or self._broker.silent:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
