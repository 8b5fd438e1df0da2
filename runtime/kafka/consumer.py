"""The consumer: read committed, offsets committed by hand after the effect, positions and not last offsets.

May import confluent_kafka. Never: Avro, a decision about a record.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, NoReturn

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Consumer as _Consumer

from runtime.clock import Monotonic, system_monotonic
from runtime.errors import TopicsError, UnavailableError
from runtime.kafka.client import EXIT_FATAL, Partition, client_config, ignore_error, log
from runtime.records import ConsumerRecord, Headers, PartitionBatch
from runtime.settings import KafkaSettings

_FENCED = frozenset(
    {
        KafkaError._ASSIGNMENT_LOST,
        KafkaError._FENCED,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.REBALANCE_IN_PROGRESS,
    }
)
START_TIMEOUT_S = 30.0
"""Below every max.poll.interval: heartbeats continue in the background."""
STAY_MS = 500
TO_THE_END_MS = 20
HEARTBEAT_MS = 500
"""A member hears of a rebalance with its next heartbeat, and the others wait for it: partitions of one that left are nobody's meanwhile."""
FETCH_LOST_MS = 10_000
"""Below STALL_CHECK_S: the client itself asks again first."""
STALL_CHECK_S = 12.0
"""How often a consumer asks whether the broker has records that it was not given."""
STALL_GRACE_S = 2.0
"""How long such a record may still be on its way."""
_LATEST = -1  # in place of a time: the end of what may be read
_EARLIEST = -2


class FencedError(Exception):
    """The group no longer counts us as the owner: another member owns the partition and may already work on it."""


class CommitError(Exception):
    """The commit was not confirmed; it may or may not have happened."""


# Not `message.headers()`: it returns a list although it has failed, and once the interpreter has specialised that call, it
# looks at the error only several calls later. A call from C looks at it at once.
_headers_of = methodcaller("headers")


def _consumer_record(message: Message) -> ConsumerRecord:
    try:
        headers: Headers = _headers_of(message) or ()
    except (UnicodeDecodeError, SystemError):
        # A header's name is not UTF-8, which Kafka allows. The record is used without headers. The client keeps the list it could
        # not finish, with a null pointer where the name should be: reading it would crash the process.
        message.set_headers([])
        headers = ()
    return ConsumerRecord(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        headers,
    )


def _record_at(run: Sequence[Message], index: int) -> ConsumerRecord:
    return _consumer_record(run[index])


class Consumer:
    """A consumer whose offsets are committed by its owner only, after the effect. Every call from one thread.

    `group` None gives a reader that owns what it assigns itself and commits nothing. `fetch_wait_ms` is how long the broker may
    keep a fetch that finds nothing; by default STAY_MS, and TO_THE_END_MS for a reader without a group that detects the ends
    of partitions: it waits for such an answer at each of them. `library` makes librdkafka's consumer of its settings.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        client_id: str,
        group: str | None,
        session_timeout_ms: int = 10_000,
        fetch_wait_ms: int | None = None,
        fetch_min_bytes: int = 1,
        queued_kbytes: int = 16_384,
        max_poll_interval_ms: int = 60_000,
        detect_eof: bool = False,
        monotonic: Monotonic = system_monotonic,
        library: Callable[[dict[str, Any]], Any] = _Consumer,
    ) -> None:
        self.eof_partitions: set[Partition] = set()
        """With `detect_eof`: partitions read up to the end they had, compaction gaps included."""
        self._detect_eof = detect_eof
        self._monotonic = monotonic
        self._assignment_epoch = 0
        self._next: dict[Partition, int] = {}  # the next offset of each assigned partition, negative before it was read
        self._committed: dict[Partition, int] = {}
        self._fenced = False
        self._behind: set[Partition] = set()
        self.current_at = float("-inf")
        """When every assigned partition was last known to be read to its end, by `monotonic`."""
        self._paused: set[Partition] = set()
        self._watch_at = float("-inf")
        self._unread: dict[Partition, int] = {}  # positions with something behind them, when last asked
        self._missed: dict[Partition, int] = {}  # positions that were fetched again
        self._consumer = library(
            {
                **client_config(settings, client_id),
                "group.id": group or f"reader-{client_id}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "partition.assignment.strategy": "range",
                "session.timeout.ms": session_timeout_ms,
                "heartbeat.interval.ms": min(HEARTBEAT_MS, session_timeout_ms // 3),
                "max.poll.interval.ms": max_poll_interval_ms,
                "fetch.wait.max.ms": fetch_wait_ms or (TO_THE_END_MS if group is None and detect_eof else STAY_MS),
                "fetch.min.bytes": fetch_min_bytes,
                "queued.max.messages.kbytes": queued_kbytes,
                "fetch.error.backoff.ms": 50,
                # A fetch that is never answered holds up its connection's partitions for this long; by default a minute.
                "socket.timeout.ms": FETCH_LOST_MS,
                # Not only for `eof_partitions`: offsets without a record (a transaction's marker, its aborted records, compacted
                # ones) yield no message, and only the end-of-partition event shows that they were passed.
                "enable.partition.eof": True,
                "error_cb": ignore_error,
            }
        )

    def subscribe(
        self,
        topics: Sequence[str],
        *,
        on_assign: Callable[[list[Partition]], Mapping[Partition, int] | None] | None = None,
        on_revoke: Callable[[list[Partition]], None] | None = None,
        on_lost: Callable[[list[Partition]], None] | None = None,
    ) -> None:
        """Join the group. `on_assign` may return offsets to start at (-2 is the beginning), by default the committed."""

        def assigned(consumer: Any, partitions: list[TopicPartition]) -> None:
            given = [(p.topic, p.partition) for p in partitions]
            starts = on_assign(given) if on_assign else None
            if not starts and given:
                starts = self._committed_starts(given)
            if starts:
                self._assigned({partition: starts[partition] for partition in given})
                consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in self._next.items()])

        def revoked(_: Any, partitions: list[TopicPartition]) -> None:
            self._assigned({})
            if on_revoke:
                on_revoke([(p.topic, p.partition) for p in partitions])

        def lost(_: Any, partitions: list[TopicPartition]) -> None:
            self._assigned({})
            handler = on_lost or on_revoke
            if handler:
                handler([(p.topic, p.partition) for p in partitions])

        self._consumer.subscribe(list(topics), on_assign=assigned, on_revoke=revoked, on_lost=lost)

    def _committed_starts(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """The group's committed position. Asked for here because librdkafka 2.16 asks once: if the broker answers that it is not
        the coordinator (a restart at the wrong moment), the partitions are owned and never read."""
        deadline = self._monotonic() + START_TIMEOUT_S
        while True:
            try:
                committed = self.committed(partitions, timeout_s=5)
            except UnavailableError as exc:
                if self._monotonic() > deadline:
                    raise
                log.warning("%s; trying again", exc)
                time.sleep(0.2)
            else:
                return {p: offset if offset >= 0 else OFFSET_BEGINNING for p, (offset, _) in committed.items()}

    def assign(self, offsets: Mapping[Partition, int]) -> None:
        """Own these partitions from these offsets on (-2 is the beginning), without a group."""
        self._assigned(offsets)
        self._consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in offsets.items()])

    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]:
        """Up to `max_records`, as soon as one is there and what is queued behind it; [] after `timeout_s`."""
        return [_consumer_record(message) for run in self._fetch(max_records, timeout_s) for message in run]

    def consume_batches(self, max_records: int, timeout_s: float) -> list[PartitionBatch]:
        """The same as runs, at a third of the cost for who needs no more than the values."""
        return [
            PartitionBatch(
                run[0].topic(),
                run[0].partition(),
                [message.value() for message in run],
                partial(_record_at, run),
                run[-1].offset() + 1,
            )
            for run in self._fetch(max_records, timeout_s)
        ]

    def _fetch(self, max_records: int, timeout_s: float) -> list[list[Message]]:
        """Batches of messages, each of one partition.

        Messages of an assignment that has ended are left out: the partition's new owner reads them.
        """
        first = self._consumer.poll(timeout_s)
        if first is None:
            self._watch()
            return []
        messages = [first]
        if max_records > 1:
            epoch = self._assignment_epoch
            messages += self._consumer.consume(max_records - 1, 0)
            if epoch != self._assignment_epoch:
                # The partitions changed hands within that call, so these may be of either assignment.
                self._read_again()
                return []
        runs: list[list[Message]] = []
        ends: list[Message] = []
        current: Partition | None = None
        for message in messages:
            if message.error() is not None:
                if message.error().code() == KafkaError._PARTITION_EOF:
                    ends.append(message)
                else:
                    self._handle_client_event(message)
                continue
            partition = message.topic(), message.partition()
            if partition != current:
                current = partition
                runs.append([])
            runs[-1].append(message)
        for run in runs:
            partition = run[-1].topic(), run[-1].partition()
            self._next[partition] = run[-1].offset() + 1
            self._behind.add(partition)
        for end in ends:
            self._ended(end.topic(), end.partition(), end.offset())
        return runs

    def _ended(self, topic: str, partition: int, end: int) -> None:
        """Everything below `end` was read, when the broker had no more than that."""
        read_on = self._next.get((topic, partition), end)
        self._next[topic, partition] = max(end, read_on)
        if self._detect_eof:
            self.eof_partitions.add((topic, partition))
        if read_on <= end:
            self._behind.discard((topic, partition))
            if not self._behind:
                self.current_at = self._monotonic()

    def _handle_client_event(self, message: Message) -> None:
        """The client says something in a message's place."""
        error = message.error()
        assert error is not None
        if error.fatal():
            self._fenced = True
            raise FencedError(error.str())
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            self._fenced = True
            raise FencedError("the loop was stopped for longer than max.poll.interval.ms")
        log.debug("consumer: %s", error.str())

    def progress(self) -> dict[Partition, int]:
        """The next offsets of partitions read further than was committed: offsets without a record count as read.

        Commit them only when everything that was read is processed. {} after a FencedError, until the group assigns partitions
        again: by then the consumer has discarded what it had read.
        """
        if self._fenced:
            return {}
        return {p: offset for p, offset in self._next.items() if offset > max(0, self._committed.get(p, 0))}

    def position(self, partition: Partition) -> int | None:
        """The next offset of an assigned partition, None before it was read or once another member owns it."""
        offset = self._next.get(partition, -1)
        return None if offset < 0 else offset

    def _assigned(self, offsets: Mapping[Partition, int]) -> None:
        self._assignment_epoch += 1
        self._next = dict(offsets)
        self._watch_at = self._monotonic() + STALL_CHECK_S
        self._committed = dict(offsets)
        self._fenced = False
        self._behind = set(offsets)
        self._paused.clear()
        self._unread.clear()
        self._missed.clear()

    def _read_again(self) -> None:
        """Fetch again from where each partition has been read to; what is fetched already is dropped by the client."""
        if self._next:
            self._consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in self._next.items()])
        if self._paused:
            self._consumer.pause([TopicPartition(t, p) for t, p in self._paused])

    def _watch(self) -> None:
        """Fetch again what librdkafka does not fetch of our partitions; end the process when that does not help.

        2.16 was seen to own partitions and send heartbeats but never a fetch, after a broker's restart through every further
        rebalance. A new process reads on. Called when nothing was left to read: what the broker gave is taken.
        """
        now = self._monotonic()
        if now < self._watch_at or not self._next:
            return
        if not self._unread:
            self._unread = self._positions_behind()
            self._watch_at = now + (STALL_GRACE_S if self._unread else STALL_CHECK_S)
            return
        missed = {p: at for p, at in self._unread.items() if self._next[p] == at}
        if any(self._missed.get(p) == at for p, at in missed.items()):
            log.critical("stalled: %s partitions have records that are not fetched; exiting", len(missed))
            os._exit(EXIT_FATAL)
        if missed:
            log.warning("%s partitions have records that are not fetched: fetching again", len(missed))
            self._read_again()
        self._missed = missed
        self._unread = {}
        self._watch_at = now + STALL_CHECK_S

    def _positions_behind(self) -> dict[Partition, int]:
        """The positions of partitions that have more to read. Waits for a running fetch, which ends when a record arrives."""
        positions = {p: at for p, at in self._next.items() if p not in self._paused}
        now = self._monotonic()
        try:
            ends = self._offsets_for(dict.fromkeys(positions, _LATEST), timeout_s=2)
        except UnavailableError:
            return {}
        behind = {p: at for p, at in positions.items() if max(at, 0) < ends[p]}
        if not behind:
            self._behind.clear()
            self.current_at = now
        return behind

    def commit(self, offsets: Mapping[Partition, int], metadata: Mapping[Partition, str] | None = None) -> None:
        """Commit synchronously. Raises FencedError when the group refuses us, CommitError when it is not confirmed."""
        if not offsets:
            return
        notes = metadata or {}
        wanted = [TopicPartition(t, p, o, metadata=notes.get((t, p), "")) for (t, p), o in offsets.items()]
        try:
            results = self._consumer.commit(offsets=wanted, asynchronous=False)
        except KafkaException as exc:
            self._refused(exc.args[0])
        for result in results or ():
            if result.error is not None:
                self._refused(result.error)
        self._committed.update(offsets)

    def _refused(self, error: KafkaError) -> NoReturn:
        if error.code() in _FENCED:
            self._fenced = True
            raise FencedError(error.str())
        raise CommitError(error.str())

    def committed(self, partitions: Iterable[Partition], timeout_s: float = 10) -> dict[Partition, tuple[int, str]]:
        """Committed (offset, metadata) per partition; offset -1 where nothing is committed. Raises UnavailableError."""
        try:
            results = self._consumer.committed([TopicPartition(t, p) for t, p in partitions], timeout=timeout_s)
        except KafkaException as exc:
            raise UnavailableError(f"cannot read committed offsets: {exc.args[0].str()}") from exc
        found = {}
        for result in results:
            if result.error is not None:
                raise UnavailableError(f"cannot read committed offsets: {result.error.str()}")
            offset = result.offset if result.offset >= 0 else -1
            found[result.topic, result.partition] = (offset, result.metadata or "")
        return found

    def watermark_offsets(
        self, partitions: Iterable[Partition], timeout_s: float = 10
    ) -> dict[Partition, tuple[int, int]]:
        """(first, end) offsets that may be read: an open transaction is beyond the end. Raises UnavailableError.

        Of all partitions at once: the broker answers behind this consumer's running fetch, up to `fetch_wait_ms` later.
        """
        partitions = list(partitions)
        firsts = self._offsets_for(dict.fromkeys(partitions, _EARLIEST), timeout_s)
        ends = self._offsets_for(dict.fromkeys(partitions, _LATEST), timeout_s)
        return {partition: (firsts[partition], ends[partition]) for partition in partitions}

    def offsets_for_times(self, times: Mapping[Partition, int], timeout_s: float = 10) -> dict[Partition, int]:
        """The first offset at or after a time (ms since 1970), the end where nothing is that late. Raises UnavailableError."""
        found = self._offsets_for(times, timeout_s)
        late = [partition for partition, offset in found.items() if offset < 0]
        return {**found, **self._offsets_for(dict.fromkeys(late, _LATEST), timeout_s)}

    def _offsets_for(self, times: Mapping[Partition, int], timeout_s: float) -> dict[Partition, int]:
        """The same, or the first or the end offset; negative where nothing is that late."""
        if not times:
            return {}
        try:
            results = self._consumer.offsets_for_times(
                [TopicPartition(t, p, at) for (t, p), at in times.items()], timeout=timeout_s
            )
        except KafkaException as exc:
            raise UnavailableError(f"cannot look up offsets: {exc.args[0].str()}") from exc
        for result in results:
            if result.error is not None:
                raise UnavailableError(f"cannot look up offsets of {result.topic}: {result.error.str()}")
        return {(result.topic, result.partition): result.offset for result in results}

    def partitions_for_topic(self, topic: str, timeout_s: float = 10) -> list[Partition]:
        """Every partition of a topic. Raises TopicsError when there is none, UnavailableError without a broker."""
        try:
            metadata = self._consumer.list_topics(topic, timeout=timeout_s)
        except KafkaException as exc:
            raise UnavailableError(f"cannot reach Kafka: {exc.args[0].str()}") from exc
        found = metadata.topics[topic]
        if found.error is not None or not found.partitions:
            raise TopicsError(f"topic {topic} does not exist; run `heliograph topics apply`")
        return [(topic, partition) for partition in sorted(found.partitions)]

    def pause(self, partitions: Iterable[Partition]) -> None:
        """Fetch nothing more of these until resumed."""
        partitions = list(partitions)
        self._paused.update(partitions)
        self._consumer.pause([TopicPartition(t, p) for t, p in partitions])

    def resume(self, partitions: Iterable[Partition]) -> None:
        """Undo pause."""
        partitions = list(partitions)
        self._paused.difference_update(partitions)
        for partition in partitions:  # its records are only asked for from now on
            self._unread.pop(partition, None)
            self._missed.pop(partition, None)
        self._consumer.resume([TopicPartition(t, p) for t, p in partitions])

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


BEGINNING = OFFSET_BEGINNING
