"""The role `timers`: every wait in the system, as a heap over the compacted topic notify.timers.v1.

A partition's timers are read from the beginning when it is assigned and fire only once its end was reached. Firing is
publish, wait for the acknowledgement, then the tombstone: at least once; a second firing is dropped by the ledger's
attempt check or collapses by its id. Reading decodes the head of a record only; the rest is decoded when it fires. Of the
records so many are held as MAX_BUFFERED_BYTES allows, the others are read again when their time has come.

A schedule that is cancelled before its time ends here, `cancelled` first and then the tombstone: cancellations are kept
for a week, and a schedule may be a month ahead. One that is about to fire, or may have been fired by an owner that died
before its tombstone, is left to the router and the senders, who have it or get it.
May import runtime. Never: what a timer is for, but for schedules and their cancellation.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol, cast

from processors.groups import TIMERS_GROUP
from processors.timers.heap import Heap, MemoryBudget, PendingTimer
from processors.timers.values import RereadConsumer, read_again
from runtime import ids
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import UNDECODABLE, dead_letter_record, publish_dead_letters
from runtime.errors import TooLargeError, UnavailableError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import BEGINNING, Consumer
from runtime.kafka.producer import Producer as KafkaProducer
from runtime.lag import report_lag
from runtime.logs import get_logger
from runtime.metrics import TIMER_LATENESS_SECONDS, TIMERS_FIRED, TIMERS_PENDING
from runtime.process import Context, crash_point
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.status import request_status, status_record, traceparent_of
from schemas.codec import DecodeError, codec
from schemas.events import Cancellation, NotificationRequest, Timer
from schemas.topics import CANCELLATIONS, TIMERS, catalogue, lane_of

log = get_logger("timers")

SESSION_TIMEOUT_MS = 6_000
"""The least that brokers allow. The successor of a killed owner waits this long before it may read."""
LEASE_S = 3.0
"""A process that did not run for half a session asks the group again before it fires."""
CANCEL_BEFORE_MS = 2_000
"""A timer nearer than this to its time is fired, cancelled or not: with some skew of clocks another owner may have done so."""
MAX_BUFFERED_BYTES = 96 << 20
"""Of timers' records in memory; a million small ones need as much again for their keys and times."""
_MAX_FIRE = 1_000
_MAX_FIRE_BYTES = 16 << 20
_MAX_CANCELLATIONS = 100_000
_CANCELLED_AT_ONCE = 500
_TARGETS = ("notify.requests.", "notify.dispatch.")
_topics = frozenset(name for name in catalogue() if name.startswith(_TARGETS))
_head = codec("Timer").head_decoder(4)  # timer_id, due_at, purpose, topic


class Reader(Protocol):
    """The part of runtime.kafka.Consumer that is used to read a topic without a group."""

    def partitions_for_topic(self, topic: str) -> list[Partition]: ...
    def assign(self, offsets: Mapping[Partition, int]) -> None: ...
    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]: ...
    def close(self) -> None: ...


class Rereader(RereadConsumer, Protocol):
    """What is read again, by a consumer that notices the ends of partitions."""

    def close(self) -> None: ...


class TimerConsumer(Protocol):
    """The part of runtime.kafka.Consumer that is used as a member of the group; it notices the ends of partitions."""

    eof_partitions: set[Partition]

    def subscribe(
        self,
        topics: Sequence[str],
        *,
        on_assign: Callable[[list[Partition]], dict[Partition, int]],
        on_revoke: Callable[[list[Partition]], None],
        on_lost: Callable[[list[Partition]], None],
    ) -> None: ...
    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]: ...
    def close(self) -> None: ...


class Producer(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    def publish(self, records: Sequence[ProducerRecord]) -> None: ...


def due_at_of(record: ConsumerRecord) -> int:
    """When a timer is due. Raises DecodeError for an invalid timer, and for one whose target topic is not allowed."""
    head = _head(record.value)
    if head["topic"] not in _topics:
        raise DecodeError(f"timers publish to {' and '.join(_TARGETS)} only")
    if record.key != head["timer_id"].encode():
        raise DecodeError("the key is not the timer_id")
    return cast(int, head["due_at"])


def decode_timer(value: bytes) -> Timer:
    """The whole timer. Raises DecodeError. What a timer holds is smaller than itself: Kafka takes it, as it took the timer."""
    return cast(Timer, codec("Timer").decode(value))


def cancelled_records(
    partition: Partition, entry: PendingTimer, cancellation: Cancellation, now: int
) -> list[ProducerRecord]:
    """The status event that ends a schedule, [] when the cancellation is for another. Raises ValueError for an invalid one."""
    timer = decode_timer(cast(bytes, entry[3]))
    if timer["purpose"] != "schedule" or not timer["topic"].startswith("notify.requests."):
        return []
    request = cast(NotificationRequest, codec("NotificationRequest").decode(timer["value"]))
    if (request["notification_id"], request["tenant"]) != (cancellation["notification_id"], cancellation["tenant"]):
        return []
    status = request_status(
        request,
        lane_of(timer["topic"]),
        "cancelled",
        now=now,
        reason="by_caller",
        source={"topic": partition[0], "partition": partition[1], "offset": entry[1]},
    )
    headers = [(header["name"], header["value"]) for header in timer["headers"]]
    return [status_record(status, traceparent_of(headers))]


class Timers:
    """Owns the partitions the group gives it; every call on one thread."""

    def __init__(
        self,
        context: Context,
        producer: Producer,
        *,
        consumer: TimerConsumer,
        cancellations: Reader,
        again: Rereader,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
        buffered_bytes: int = MAX_BUFFERED_BYTES,
    ) -> None:
        """`consumer` is the group's member, `cancellations` reads the cancellations, `again` timers whose bytes are not held."""
        self._context = context
        self._producer = producer
        self._consumer = consumer
        self._cancellations = cancellations
        self._again = again
        self._clock = clock
        self._monotonic = monotonic
        self._heaps: dict[Partition, Heap] = {}
        self._revoked: dict[Partition, Heap] = {}
        self._budget = MemoryBudget(buffered_bytes)
        self._unusable: dict[Partition, dict[bytes, int]] = {}  # keys whose last record is not a timer, and its offset
        self._assigned = self._cancellations_read = False
        self._polled = 0.0
        self._known_cancellations: dict[
            bytes, Cancellation
        ] = {}  # the latest, for timers that arrive after their cancellation
        self._late: set[bytes] = set()  # those timers

    def run(self) -> None:
        """Read, fire and wait until the context stops."""
        self._context.health.require("group", self._not_ready)
        self._context.health.started()
        self.join()
        try:
            while not self._context.stopping.is_set():
                self.run_once()
        finally:
            gc.enable()
            self._consumer.close()
            self._cancellations.close()
            self._again.close()

    def positions(self) -> dict[Partition, int]:
        """How far the partitions of this process are read; from any thread."""
        return {partition: heap.next_offset for partition, heap in list(self._heaps.items())}

    def join(self) -> None:
        """Become one of the group; it gives partitions within a turn."""
        self._consumer.subscribe([TIMERS], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def run_once(self) -> None:
        """Read what is there, end what is cancelled, fire what is due."""
        records = self._consumer.consume(5_000, self._wait_s())
        self._polled = self._monotonic()
        self.take(records)
        self._order_what_is_read()
        self._remove_finished()
        try:
            self.cancel_schedules()
            self.fire()
        except UnavailableError as exc:  # what was to be read again: it comes up again in the next turn
            log.warning("timers wait", error=str(exc))
        TIMERS_PENDING.set(sum(len(heap) for heap in self._heaps.values()))

    # -- ownership --------------------------------------------------------------------------------------------------

    def _not_ready(self) -> str | None:
        if not self._assigned:
            return "joining the group"
        return None if all(heap.ordered for heap in self._heaps.values()) else "reading the timers"

    def _on_assign(self, partitions: list[Partition]) -> dict[Partition, int]:
        # Every rebalance takes all partitions and gives most of them back: those are read on, not read again.
        # An empty heap counts as read: no timer is pending in it, and its position is known.
        self._heaps = {p: self._revoked.pop(p) if p in self._revoked else Heap(self._budget) for p in partitions}
        self._forget_revoked()
        self._consumer.eof_partitions.clear()
        self._assigned = True
        if not all(heap.ordered for heap in self._heaps.values()):
            self._cancellations_read = False
            # A million live objects and no cycle: each full collection during the read would scan all of them in vain.
            gc.disable()
        log.info("partitions assigned", partitions=len(partitions))
        return {p: heap.next_offset if heap.next_offset else BEGINNING for p, heap in self._heaps.items()}

    def _on_revoke(self, _: list[Partition]) -> None:
        self._revoked = self._heaps
        self._heaps = {}
        self._unusable.clear()

    def _on_lost(self, _: list[Partition]) -> None:
        # For an unknown time: tombstones are kept for a day only, so this starts from the beginning.
        self._revoked = self._revoked | self._heaps
        self._heaps = {}
        self._unusable.clear()
        self._forget_revoked()

    def _forget_revoked(self) -> None:
        for heap in self._revoked.values():
            heap.clear()
        self._revoked = {}

    # -- reading ----------------------------------------------------------------------------------------------------

    def _wait_s(self) -> float:
        """Until the next timer is due, between 1 and 100 ms."""
        upcoming = [due for heap in self._heaps.values() if (due := heap.next_due()) is not None]
        if not upcoming:
            return 0.1
        return min(0.1, max(0.001, (min(upcoming) - self._clock()) / 1000))

    def take(self, records: Iterable[ConsumerRecord]) -> None:
        """Add timers, remove cancelled ones; dead-letter invalid records, whose keys then get a tombstone."""
        dead_letters: list[ProducerRecord] = []
        for record in records:
            partition = (record.topic, record.partition)
            heap = self._heaps.get(partition)
            if heap is None:
                continue
            heap.next_offset = record.offset + 1
            key = record.key
            value = record.value
            unusable = self._unusable.setdefault(partition, {})
            if key is not None:
                unusable.pop(key, None)
            if value is None and key is not None:
                heap.drop(key)
                continue
            try:
                due_at = due_at_of(record)
            except DecodeError as exc:
                dead_letters.append(self._dead_letter(record, exc))
                if key is not None:
                    unusable[key] = record.offset
            else:
                assert key is not None and value is not None
                heap.put(key, due_at, record.offset, value)
                if key in self._known_cancellations:
                    self._late.add(key)
        publish_dead_letters(self._producer.publish, dead_letters)

    def _remove_finished(self) -> None:
        """Tombstones for keys whose last record is not a timer, once their dead letters are acknowledged.

        Only at the end of a partition: a valid timer of the key may follow, and a tombstone would end that one.
        """
        for partition, unusable in self._unusable.items():
            if unusable and partition in self._consumer.eof_partitions:
                keys = [key for key in unusable if self._heaps[partition].get(key) is None]
                self._producer.publish([ProducerRecord(TIMERS, key, None, partition=partition[1]) for key in keys])
                unusable.clear()

    def _dead_letter(self, record: ConsumerRecord, error: Exception) -> ProducerRecord:
        return dead_letter_record(record, stage="timers", reason=UNDECODABLE, error=error, now=self._clock())

    def _order_what_is_read(self) -> None:
        for partition in self._consumer.eof_partitions.intersection(self._heaps):
            if not self._heaps[partition].ordered:
                self._heaps[partition].order()
                log.info("timers read", partition=partition[1], pending=len(self._heaps[partition]))
        if not gc.isenabled() and all(heap.ordered for heap in self._heaps.values()):
            gc.freeze()
            gc.enable()

    # -- cancelling -------------------------------------------------------------------------------------------------

    def cancel_schedules(self) -> None:
        """End the schedules that were cancelled; after a takeover every cancellation is looked at once."""
        if not self._assigned or not self._consumer.eof_partitions.issuperset(self._heaps):
            return  # a tombstone may still come
        if not self._cancellations_read:
            partitions = self._cancellations.partitions_for_topic(CANCELLATIONS)
            self._cancellations.assign(dict.fromkeys(partitions, BEGINNING))
            self._cancellations_read = True
        cancellations = {key: self._known_cancellations[key] for key in self._late if key in self._known_cancellations}
        self._late.clear()
        for record in self._cancellations.consume(1_000, 0):
            try:
                cancellation = cast(Cancellation, codec("Cancellation").decode(record.value))
                # A later generation is scheduled by a resend only; its cancellation is seen when it fires.
                cancellations[ids.timer_id(ids.canonical(cancellation["notification_id"]), "schedule").encode()] = (
                    cancellation
                )
            except ValueError:
                continue  # a tombstone, or what the router dead-letters
        if cancellations:
            self._known_cancellations |= cancellations
            for key in [
                *islice(self._known_cancellations, max(0, len(self._known_cancellations) - _MAX_CANCELLATIONS))
            ]:
                del self._known_cancellations[key]
            try:
                self._cancel(cancellations)
            except UnavailableError:
                self._late.update(cancellations)
                raise

    def _cancel(self, cancellations: dict[bytes, Cancellation]) -> None:
        now = self._clock()
        records: list[ProducerRecord] = []
        ended: list[tuple[Partition, bytes]] = []
        for partition, heap in self._heaps.items():
            found = (
                (entry, cancellation)
                for key, cancellation in cancellations.items()
                if (entry := heap.get(key)) is not None
            )
            ahead = ((entry, cancellation) for entry, cancellation in found if entry[0] > now + CANCEL_BEFORE_MS)
            while some := [*islice(ahead, _CANCELLED_AT_ONCE)]:
                whole = self._whole(partition, [entry for entry, _ in some])
                for entry, cancellation in zip(whole, (cancellation for _, cancellation in some), strict=True):
                    try:
                        status_records = cancelled_records(partition, entry, cancellation, now)
                    except ValueError:
                        continue  # dead-lettered when it fires
                    if status_records:
                        records += status_records
                        ended.append((partition, entry[2]))
        # The fact first: a schedule that ended without one would be lost.
        self._producer.publish(records)
        self._producer.publish([ProducerRecord(TIMERS, key, None, partition=partition[1]) for partition, key in ended])
        for partition, key in ended:
            self._heaps[partition].drop(key)

    # -- firing -----------------------------------------------------------------------------------------------------

    def fire(self) -> None:
        """Publish what is due, then tombstone it; a thousand of a partition at most, so that the group hears of us."""
        if self._monotonic() - self._polled > LEASE_S:
            return
        now = self._clock()
        for partition, heap in self._heaps.items():
            if partition not in self._consumer.eof_partitions:
                continue  # a tombstone may still come
            if due := heap.due(now, _MAX_FIRE, _MAX_FIRE_BYTES):
                try:
                    whole = self._whole(partition, due)
                except UnavailableError:
                    heap.again(due)
                    raise
                if self._monotonic() - self._polled > LEASE_S:  # reading took that long, or the process did not run
                    heap.again(due)
                    return
                self._fire(partition, heap, whole)

    def _whole(self, partition: Partition, entries: Sequence[PendingTimer]) -> list[PendingTimer]:
        """The entries with their bytes; None in the place of bytes that are gone, because something newer has their key."""
        missing = [entry[1] for entry in entries if not isinstance(entry[3], bytes)]
        read = read_again(self._again, partition, missing, self._monotonic) if missing else {}
        return [entry if isinstance(entry[3], bytes) else (*entry[:3], read.get(entry[1], b"")) for entry in entries]

    def _fire(self, partition: Partition, heap: Heap, due: Sequence[PendingTimer]) -> None:
        out: list[ProducerRecord] = []
        fired: list[Timer] = []
        sources: dict[int, ConsumerRecord] = {}
        for _, offset, key, value in due:
            if not value:
                continue  # a newer record of its key is still to be read
            record = ConsumerRecord(partition[0], partition[1], offset, 0, key, cast(bytes, value))
            try:
                timer = decode_timer(cast(bytes, value))
            except DecodeError as exc:
                out.append(self._dead_letter(record, exc))
            else:
                headers = [(header["name"], header["value"]) for header in timer["headers"]]
                out.append(ProducerRecord(timer["topic"], timer["key"], timer["value"], headers))
                sources[id(out[-1])] = record
                fired.append(timer)
        self._publish(out, sources)
        crash_point("after_fire", self._context.settings.crash_at)
        self._producer.publish(
            [ProducerRecord(TIMERS, entry[2], None, partition=partition[1]) for entry in due if entry[3]]
        )
        done = self._clock()
        for entry in due:
            if (pending := heap.get(entry[2])) is not None and pending[1] == entry[1]:
                heap.drop(entry[2])
        for timer in fired:
            TIMERS_FIRED.labels(timer["purpose"]).inc()
            TIMER_LATENESS_SECONDS.observe(max(0, done - timer["due_at"]) / 1000)

    def _publish(self, out: Sequence[ProducerRecord], sources: Mapping[int, ConsumerRecord]) -> None:
        """Fired records and dead letters; a timer whose record Kafka refuses for its size is dead-lettered, too."""
        try:
            self._producer.publish(out)
        except TooLargeError as exc:
            dead_letters = [
                self._dead_letter(sources[id(refused)], exc) if id(refused) in sources else refused
                for refused in exc.records
            ]
            publish_dead_letters(self._producer.publish, dead_letters)


def create_timers(context: Context, producer: Producer, clock: Clock = system_clock) -> Timers:
    """The stage on Kafka, as the settings say."""
    kafka = context.settings.kafka
    consumer = Consumer(
        kafka,
        client_id="timers",
        group=TIMERS_GROUP,
        session_timeout_ms=SESSION_TIMEOUT_MS,
        queued_kbytes=32_768,
        detect_eof=True,
    )
    cancellations = Consumer(kafka, client_id="timers-cancellations", group=None)
    again = Consumer(kafka, client_id="timers-again", group=None, queued_kbytes=8_192, detect_eof=True)
    return Timers(context, producer, consumer=consumer, cancellations=cancellations, again=again, clock=clock)


async def run_timers(context: Context) -> None:
    """Fire timers until the context stops."""
    producer = KafkaProducer(context.settings.kafka, client_id="timers", linger_ms=1)
    try:
        timers = create_timers(context, producer)
        kafka = context.settings.kafka
        lag = asyncio.create_task(report_lag(kafka, TIMERS_GROUP, [TIMERS], context.stopping, timers.positions))
        try:
            await asyncio.to_thread(timers.run)
        finally:
            lag.cancel()
    finally:
        producer.close()
