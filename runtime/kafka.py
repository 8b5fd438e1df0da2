"""Kafka as this project uses it: an idempotent producer, a manual-commit consumer, topic administration.

The only module that imports confluent_kafka. Its errors leave as our own. Never: Avro, a decision.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, NoReturn

from confluent_kafka import (
    OFFSET_BEGINNING,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from confluent_kafka import Consumer as _Consumer
from confluent_kafka import Producer as _Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)  # fmt: skip

from runtime.errors import PublishError, SettingsError, TooLargeError, TopicsError, UnavailableError
from runtime.records import Headers, InRecord, OutRecord, Run
from runtime.settings import KafkaSettings
from schemas.topics import MAX_LETTER_BYTES, Topic, catalogue

log = logging.getLogger("kafka")

Partition = tuple[str, int]
"""(topic, partition)"""

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
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})
START_PATIENCE_S = 30.0
"""Below every max.poll.interval: heartbeats go on meanwhile."""
STALL_CHECK_S = 15.0
"""Silence after which a consumer asks whether there is something to read; after twice that it has stalled."""
EXIT_FATAL = 70
"""EX_SOFTWARE: the supervisor restarts the process, which takes over from what is committed."""


class FencedError(Exception):
    """The group no longer counts us as the owner: whatever we were about to do belongs to somebody else now."""


class CommitError(Exception):
    """The commit was not confirmed; it may or may not have happened."""


def _quiet(_: KafkaError) -> None:
    """Connection trouble is retried by librdkafka for ever and shows as lag; a line per refused connect helps nobody."""


def _die(error: KafkaError) -> None:
    if error.fatal():
        log.critical("fatal client error, exiting: %s", error.str())
        os._exit(EXIT_FATAL)


def _client_config(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": f"{client_id}-{os.getpid()}",
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "retry.backoff.ms": 20,
        "retry.backoff.max.ms": 200,
        "socket.keepalive.enable": True,
        "log_level": 2,
        "allow.auto.create.topics": False,
        **settings.client_options(),
    }


class _Pending:
    """Counts the acknowledgements of one batch; one callback per batch, not a future per record."""

    __slots__ = ("_done", "_left", "error", "too_large")
    error: str | None

    def __init__(self, count: int, done: Callable[[_Pending], None]) -> None:
        self._left, self._done, self.error = count, done, None
        self.too_large: set[tuple[str, bytes | None, bytes | None]] = set()
        """(topic, key, value) of what was refused for its size."""

    def acknowledge(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            if error.code() in _TOO_LARGE:
                self.too_large.add((message.topic(), message.key(), message.value()))
            else:
                self.error = f"a record of {message.topic()}: {error.str()}"
        self._ended()

    def refuse(self, record: OutRecord) -> None:
        """The client itself would not take it."""
        self.too_large.add((record.topic, record.key, record.value))
        self._ended()

    def _ended(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done(self)

    def refused(self, records: Sequence[OutRecord]) -> list[OutRecord]:
        """Those of the records that were refused for their size. Raises PublishError when others are not acknowledged."""
        if self.error is not None:
            raise PublishError(f"the broker did not acknowledge {self.error}; publish again with the same id")
        return [r for r in records if (r.topic, r.key, r.value) in self.too_large] if self.too_large else []


class Producer:
    """Idempotent, acks=all. A record counts as published only when the broker has acknowledged it."""

    def __init__(
        self, settings: KafkaSettings, *, client_id: str, linger_ms: float = 5, delivery_timeout_s: float = 60
    ) -> None:
        self._producer = _Producer(
            {
                **_client_config(settings, client_id),
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "linger.ms": linger_ms,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 200_000,
                "message.max.bytes": MAX_LETTER_BYTES,  # the largest of ours; for the others the broker has a limit
                "delivery.timeout.ms": int(delivery_timeout_s * 1_000),
                # Less than the delivery timeout, so that a request lost with a broker is sent again in time.
                "request.timeout.ms": int(min(10.0, delivery_timeout_s) * 1_000),
                "error_cb": _die,
            }
        )
        self._timeout_s = delivery_timeout_s
        self._lock = threading.Lock()  # records of one batch stay together and in order
        self._closed = False
        self._poller = threading.Thread(target=self._poll, name=f"{client_id}-poll", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._closed:
            self._producer.poll(0.2)

    def _enqueue(self, records: Sequence[OutRecord], done: Callable[[_Pending], None]) -> None:
        pending = _Pending(len(records), done)
        with self._lock:
            for record in records:
                while True:
                    try:
                        self._producer.produce(
                            record.topic, value=record.value, key=record.key, partition=record.partition,
                            headers=list(record.headers) or None, on_delivery=pending.acknowledge,
                        )  # fmt: skip
                        break
                    except BufferError:
                        self._producer.poll(0.05)
                    except KafkaException as exc:
                        if exc.args[0].code() not in _TOO_LARGE:
                            raise PublishError(f"Kafka refused a record: {exc.args[0].str()}") from exc
                        pending.refuse(record)
                        break

    def publish(self, records: Sequence[OutRecord]) -> None:
        """Block until every record is acknowledged.

        Raises PublishError when one is not, and TooLargeError when all are but those that Kafka refuses for their size.
        """
        refused = self._publish(records)
        if len(records) > 1:
            # The broker refuses a batch as a whole: which of its records is too large shows when each goes alone.
            refused = [record for record in refused if self._publish([record])]
        _raise_refused(refused)

    def _publish(self, records: Sequence[OutRecord]) -> list[OutRecord]:
        """What was refused for its size; everything else is acknowledged."""
        if not records:
            return []
        acknowledged = threading.Event()
        outcome: list[_Pending] = []

        def done(pending: _Pending) -> None:
            outcome.append(pending)
            acknowledged.set()

        self._enqueue(records, done)
        if not acknowledged.wait(self._timeout_s + 5):
            raise PublishError("the broker did not answer in time; publish again with the same id")
        return outcome[0].refused(records)

    async def send(self, records: Sequence[OutRecord]) -> None:
        """Wait until every record is acknowledged; raises as `publish` does."""
        refused = await self._send(records)
        if len(records) > 1:
            refused = [record for record in refused if await self._send([record])]
        _raise_refused(refused)

    async def _send(self, records: Sequence[OutRecord]) -> list[OutRecord]:
        if not records:
            return []
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[_Pending] = loop.create_future()

        def settle(pending: _Pending) -> None:
            if not acknowledged.done():  # the waiter may have been cancelled
                acknowledged.set_result(pending)

        def done(pending: _Pending) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, pending)

        self._enqueue(records, done)
        return (await acknowledged).refused(records)

    def close(self, timeout_s: float = 10) -> None:
        """Flush what is queued and stop."""
        self._producer.flush(timeout_s)
        self._closed = True
        self._poller.join(1)


def _raise_refused(records: Sequence[OutRecord]) -> None:
    if records:
        first = records[0]
        size = len(first.key or b"") + len(first.value or b"")
        more = f" and {len(records) - 1} more" if len(records) > 1 else ""
        raise TooLargeError(
            f"Kafka refuses a record of {first.topic} for its {size:,} bytes{more}: compare the topic's max.message.bytes "
            "with `heliograph topics diff`",
            records,
        )


# Not `message.headers()`: it returns a list although it has failed, and once the interpreter has specialised that call, it
# looks at the error only several calls later. A call from C looks at it at once.
_headers_of = methodcaller("headers")


def _in_record(message: Message) -> InRecord:
    try:
        headers: Headers = _headers_of(message) or ()
    except (UnicodeDecodeError, SystemError):
        # A header's name is not UTF-8, which Kafka does not mind. The record goes on without headers. The client keeps the
        # list it could not finish, with a hole where the name should be: who touches that dies of a null pointer.
        message.set_headers([])
        headers = ()
    return InRecord(
        message.topic(), message.partition(), message.offset(), message.timestamp()[1], message.key(), message.value(),
        headers,
    )  # fmt: skip


def _record_at(run: Sequence[Message], index: int) -> InRecord:
    return _in_record(run[index])


class Consumer:
    """A consumer whose offsets are committed by its owner only, after the effect. Every call from one thread.

    `group` None gives a reader that owns what it assigns itself and commits nothing.
    """

    def __init__(
        self, settings: KafkaSettings, *, client_id: str, group: str | None, session_timeout_ms: int = 10_000,
        fetch_wait_ms: int = 500, fetch_min_bytes: int = 1, queued_kbytes: int = 16_384, max_poll_interval_ms: int = 60_000, notice_end: bool = False,
    ) -> None:  # fmt: skip
        self.reached_end: set[Partition] = set()
        """With `notice_end`: partitions read up to the end they had, compaction gaps included."""
        self._notice_end = notice_end
        self._generation = 0
        self._next: dict[Partition, int] = {}  # where each assigned partition goes on, negative before it was read
        self._committed: dict[Partition, int] = {}
        self._fenced = False
        self._behind: set[Partition] = set()
        self.current_at = float("-inf")
        """When every assigned partition was last known to be read to its end, by time.monotonic()."""
        self._paused: set[Partition] = set()
        self._silent_since: float | None = None
        self._missed: set[Partition] = set()  # had something to read at the last check
        self._consumer = _Consumer(
            {
                **_client_config(settings, client_id),
                "group.id": group or f"reader-{client_id}",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "partition.assignment.strategy": "range",
                "session.timeout.ms": session_timeout_ms,
                "heartbeat.interval.ms": min(2_000, session_timeout_ms // 3),
                "max.poll.interval.ms": max_poll_interval_ms,
                "fetch.wait.max.ms": fetch_wait_ms,
                "fetch.min.bytes": fetch_min_bytes,
                "queued.max.messages.kbytes": queued_kbytes,
                "fetch.error.backoff.ms": 50,
                # Not only for `reached_end`: what is no record (a transaction's marker, its aborted records, what compaction
                # took away) comes as no message, and the end of the partition is how we hear that it was passed.
                "enable.partition.eof": True,
                "error_cb": _quiet,
            }
        )

    def subscribe(
        self, topics: Sequence[str], *, on_assign: Callable[[list[Partition]], Mapping[Partition, int] | None] | None = None,
        on_revoke: Callable[[list[Partition]], None] | None = None, on_lost: Callable[[list[Partition]], None] | None = None,
    ) -> None:  # fmt: skip
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
        """Where the group stands. Asked for here because librdkafka 2.16 asks once: when the broker answers that it is no
        longer the coordinator (a restart at the wrong moment), the partitions are owned and never read."""
        deadline = time.monotonic() + START_PATIENCE_S
        while True:
            try:
                committed = self.committed(partitions, timeout_s=5)
            except UnavailableError as exc:
                if time.monotonic() > deadline:
                    raise
                log.warning("%s; trying again", exc)
                time.sleep(0.2)
            else:
                return {p: offset if offset >= 0 else OFFSET_BEGINNING for p, (offset, _) in committed.items()}

    def assign(self, offsets: Mapping[Partition, int]) -> None:
        """Own these partitions from these offsets on (-2 is the beginning), without a group."""
        self._assigned(offsets)
        self._consumer.assign([TopicPartition(t, p, offset) for (t, p), offset in offsets.items()])

    def consume(self, max_records: int, timeout_s: float) -> list[InRecord]:
        """Up to `max_records`, as soon as one is there and what is queued behind it; [] after `timeout_s`."""
        return [_in_record(message) for run in self._fetch(max_records, timeout_s) for message in run]

    def consume_runs(self, max_records: int, timeout_s: float) -> list[Run]:
        """The same as runs, at a third of the cost for who needs no more than the values."""
        return [
            Run(
                run[0].topic(), run[0].partition(), [message.value() for message in run], partial(_record_at, run),
                run[-1].offset() + 1,
            )
            for run in self._fetch(max_records, timeout_s)
        ]  # fmt: skip

    def _fetch(self, max_records: int, timeout_s: float) -> list[list[Message]]:
        """Runs of messages of one partition each.

        What an assignment brought that ended meanwhile is left out: whoever owns its partition now reads it.
        """
        first = self._consumer.poll(timeout_s)
        if first is None:
            self._watch()
            return []
        self._silent_since = None
        messages = [first]
        if max_records > 1:
            generation = self._generation
            messages += self._consumer.consume(max_records - 1, 0)
            if generation != self._generation:
                # The partitions changed hands within that call. Nothing in it is of the new assignment, whose first fetch
                # takes longer than the call, which does not wait.
                return []
        runs: list[list[Message]] = []
        ends: list[Message] = []
        current: Partition | None = None
        for message in messages:
            if message.error() is not None:
                if message.error().code() == KafkaError._PARTITION_EOF:
                    ends.append(message)
                else:
                    self._told(message)
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
        if self._notice_end:
            self.reached_end.add((topic, partition))
        if read_on <= end:
            self._behind.discard((topic, partition))
            if not self._behind:
                self.current_at = time.monotonic()

    def _told(self, message: Message) -> None:
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
        """Where partitions go on that were read further than was committed: what is no record counts as read.

        To be committed when everything that was taken is done, and at no other time. {} after a FencedError, until the
        group gives partitions again: the owner has forgotten what it took.
        """
        if self._fenced:
            return {}
        return {p: offset for p, offset in self._next.items() if offset > max(0, self._committed.get(p, 0))}

    def position(self, partition: Partition) -> int | None:
        """Where an assigned partition goes on, None before it was read or once it is another's."""
        offset = self._next.get(partition, -1)
        return None if offset < 0 else offset

    def _assigned(self, offsets: Mapping[Partition, int]) -> None:
        self._generation += 1
        self._next, self._silent_since = dict(offsets), None
        self._committed, self._fenced = dict(offsets), False
        self._behind = set(offsets)
        self._paused.clear()
        self._missed.clear()

    def _watch(self) -> None:
        """End the process when partitions of ours have records that librdkafka does not fetch.

        After a broker's restart 2.16 was seen to own partitions, send heartbeats and never a fetch, through every further
        rebalance (the sink stood still so, with no error). A new process reads on.
        """
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        if now - self._silent_since < STALL_CHECK_S or not self._next:
            return
        self._silent_since = now
        try:
            waiting = {partition for partition in self._next.keys() - self._paused if self._has_more(partition)}
        except UnavailableError:
            waiting = set()
        else:
            if not waiting:
                self._behind.clear()
                self.current_at = time.monotonic()
        if still := waiting & self._missed:
            log.critical("stalled: %s partitions have records that are not fetched; exiting", len(still))
            os._exit(EXIT_FATAL)
        self._missed = waiting

    def _has_more(self, partition: Partition) -> bool:
        low, high = self.offset_range(partition, timeout_s=2)  # up to the first open transaction: what may be read
        return max(self._next[partition], low) < high

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

    def offset_range(self, partition: Partition, timeout_s: float = 10) -> tuple[int, int]:
        """(first, end) offsets that may be read: an open transaction is beyond the end. Raises UnavailableError."""
        try:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(*partition), timeout=timeout_s)
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the end of {partition[0]}: {exc.args[0].str()}") from exc
        return low, high

    def offsets_at(self, times: Mapping[Partition, int], timeout_s: float = 10) -> dict[Partition, int]:
        """The first offset at or after a time (ms since 1970), the end where nothing is that late. Raises UnavailableError."""
        try:
            results = self._consumer.offsets_for_times(
                [TopicPartition(t, p, at) for (t, p), at in times.items()], timeout=timeout_s
            )
        except KafkaException as exc:
            raise UnavailableError(f"cannot look up times: {exc.args[0].str()}") from exc
        found = {}
        for result in results:
            if result.error is not None:
                raise UnavailableError(f"cannot look up times: {result.error.str()}")
            partition = (result.topic, result.partition)
            found[partition] = result.offset if result.offset >= 0 else self.offset_range(partition, timeout_s)[1]
        return found

    def partitions_of(self, topic: str, timeout_s: float = 10) -> list[Partition]:
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
        self._consumer.resume([TopicPartition(t, p) for t, p in partitions])

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()


BEGINNING = OFFSET_BEGINNING


class Admin:
    """Topics of the cluster."""

    def __init__(self, settings: KafkaSettings, timeout_s: float = 15) -> None:
        self._settings, self._timeout_s = settings, timeout_s
        try:
            self._admin = AdminClient({**_client_config(settings, "admin"), "error_cb": _quiet})
        except KafkaException as exc:
            raise SettingsError(f"wrong settings: HELIOGRAPH_KAFKA__OPTIONS: {exc.args[0].str()}") from exc

    def partition_counts(self) -> dict[str, int]:
        """Topic → number of partitions. Raises UnavailableError with the address that was tried."""
        try:
            metadata = self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as exc:
            raise UnavailableError(
                f"cannot reach Kafka at {self._settings.bootstrap_servers}: {exc.args[0].str()}; is it running, and is "
                "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS right?"
            ) from exc
        return {name: len(topic.partitions) for name, topic in metadata.topics.items()}

    def replication(self) -> dict[str, int]:
        """Topic → copies of its records, the least of its partitions. Raises UnavailableError."""
        try:
            metadata = self._admin.list_topics(timeout=self._timeout_s)
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the topics' replicas: {exc.args[0].str()}") from exc
        return {
            name: min((len(partition.replicas) for partition in topic.partitions.values()), default=0)
            for name, topic in metadata.topics.items()
        }

    def configs(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Topic → its configuration. Raises UnavailableError."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        if not resources:
            return {}
        answers = self._admin.describe_configs(resources, request_timeout=self._timeout_s)
        try:
            return {
                r.name: {key: entry.value for key, entry in future.result().items()} for r, future in answers.items()
            }
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the topics' configuration: {exc.args[0].str()}") from exc

    def create(self, topics: Sequence[Topic], profile: str, replication: int) -> None:
        """Create topics; one that exists already is left alone. Raises TopicsError."""
        wanted = [
            NewTopic(
                t.name,
                num_partitions=t.partitions[profile],
                replication_factor=replication,
                config=t.config_for(replication),
            )
            for t in topics
        ]
        if not wanted:
            return
        for name, future in self._admin.create_topics(wanted, operation_timeout=self._timeout_s).items():
            try:
                future.result()
            except KafkaException as exc:
                if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise TopicsError(f"cannot create {name}: {exc.args[0].str()}") from exc

    def alter_configs(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Set configuration entries; others stay. Raises TopicsError."""
        resources = [
            ConfigResource(
                ResourceType.TOPIC,
                name,
                incremental_configs=[
                    ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
                    for key, value in entries.items()
                ],
            )
            for name, entries in changes.items()
        ]
        if not resources:
            return
        for resource, future in self._admin.incremental_alter_configs(resources).items():
            try:
                future.result()
            except KafkaException as exc:
                raise TopicsError(f"cannot configure {resource.name}: {exc.args[0].str()}") from exc

    def group_offsets(self, group: str, topics: Sequence[str]) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """(committed offset, lag) per partition of `topics`; what was never committed counts from the log's start.

        The lag is of offsets: what is left may be no record (see `with_records`). Raises UnavailableError.
        """
        counts = self.partition_counts()
        wanted = [TopicPartition(topic, n) for topic in topics for n in range(counts.get(topic, 0))]
        # Not list_consumer_group_offsets: librdkafka 2.16 dies of a null pointer when the coordinator is not there yet, or moves
        # (rd_kafka_handle_OffsetFetch asks a group that an admin client does not have). This one never joins.
        reader = _Consumer({**_client_config(self._settings, "admin"), "group.id": group, "error_cb": _quiet})
        try:
            answer = reader.committed(wanted, timeout=self._timeout_s)
            for p in answer:
                if p.error is not None:
                    raise KafkaException(p.error)
            committed = {(p.topic, p.partition): max(0, p.offset) for p in answer}
            ends = self._admin.list_offsets(
                {partition: OffsetSpec.latest() for partition in wanted}, request_timeout=self._timeout_s,
                isolation_level=IsolationLevel.READ_COMMITTED,
            )  # fmt: skip
            lag = {
                (p.topic, p.partition): max(0, future.result().offset - committed[p.topic, p.partition])
                for p, future in ends.items()
            }
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the offsets of {group}: {exc.args[0].str()}") from exc
        finally:
            reader.close()
        return committed, lag

    def held_back(self, topics: Sequence[str]) -> dict[Partition, int]:
        """Partitions of which nobody may read on because a transaction is open, and the records behind its beginning.

        Blocks. Raises UnavailableError.
        """
        counts = self.partition_counts()
        wanted = [TopicPartition(topic, n) for topic in topics for n in range(counts.get(topic, 0))]
        ends = []
        try:
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
                asked = self._admin.list_offsets(
                    {p: OffsetSpec.latest() for p in wanted}, request_timeout=self._timeout_s, isolation_level=level
                )
                ends.append({(p.topic, p.partition): future.result().offset for p, future in asked.items()})
        except KafkaException as exc:
            raise UnavailableError(f"cannot read the ends of topics: {exc.args[0].str()}") from exc
        stable, all_of_it = ends
        return {partition: end - stable[partition] for partition, end in all_of_it.items() if end > stable[partition]}

    def with_records(self, places: Mapping[Partition, int]) -> set[Partition]:
        """The partitions that have a record at or after an offset; one that does not tell in time counts as such.

        The end of a log may be no record: the marker of a transaction, or records of one that was aborted. Blocks for a
        fetch. Raises UnavailableError.
        """
        reader = _Consumer(
            {
                **_client_config(self._settings, "admin"), "group.id": "reader-admin", "enable.auto.commit": False,
                "auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.partition.eof": True,
                "fetch.message.max.bytes": 65_536, "error_cb": _quiet,
            }
        )  # fmt: skip
        left, found = set(places), set()
        deadline = time.monotonic() + self._timeout_s
        try:
            reader.assign([TopicPartition(t, p, offset) for (t, p), offset in places.items()])
            while left and (wait_s := deadline - time.monotonic()) > 0:
                message = reader.poll(wait_s)
                if message is None:
                    continue
                partition = (message.topic(), message.partition())
                if message.error() is None:
                    if (
                        message.offset() >= places[partition]
                    ):  # else the log was made anew, and is read from its beginning
                        found.add(partition)
                elif message.error().code() != KafkaError._PARTITION_EOF:
                    continue
                left.discard(partition)
        except KafkaException as exc:
            raise UnavailableError(f"cannot read what a group has not read: {exc.args[0].str()}") from exc
        finally:
            reader.close()
        return found | left


def check_cluster(settings: KafkaSettings) -> None:
    """Raises UnavailableError when Kafka does not answer, TopicsError when a topic of the catalogue is missing."""
    counts = Admin(settings, timeout_s=10).partition_counts()
    missing = sorted(set(catalogue()) - set(counts))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise TopicsError(f"topic {missing[0]}{more} does not exist; run `heliograph topics apply`")


def wait_for_broker(settings: KafkaSettings, timeout_s: float) -> None:
    """Return when the broker answers. Raises UnavailableError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            Admin(settings, timeout_s=2).partition_counts()
            return
        except UnavailableError:
            if time.monotonic() > deadline:
                raise
