"""The role `timers`: every wait in the system, as a heap over the compacted topic notify.timers.v1.

A partition's timers are read from the beginning when it is assigned and fire only once its end was reached. Firing is
publish, wait for the acknowledgement, then the tombstone: at least once; a second firing is dropped by the ledger's
attempt check or collapses by its id.
May import runtime. What never enters here: what a timer is for.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from typing import cast

from processors.groups import TIMERS_GROUP
from runtime.clock import Clock, system_clock
from runtime.dead_letters import UNDECODABLE, dead_letter
from runtime.kafka import BEGINNING, Consumer, Partition, Producer
from runtime.logs import get_logger
from runtime.metrics import TIMER_LATENESS_SECONDS, TIMERS_FIRED, TIMERS_PENDING
from runtime.process import Context
from runtime.records import InRecord, OutRecord
from schemas.codec import DecodeError, codec
from schemas.events import Timer
from schemas.topics import TIMERS, catalogue

log = get_logger("timers")
_MAX_FIRE = 1_000
_TARGETS = ("notify.requests.", "notify.dispatch.")


def decode_timer(record: InRecord) -> Timer:
    """The timer. Raises DecodeError, also for one that points at a topic timers have no business with."""
    timer = cast(Timer, codec("Timer").decode(record.value))
    if timer["topic"] not in catalogue() or not timer["topic"].startswith(_TARGETS):
        raise DecodeError(f"timers publish to {' and '.join(_TARGETS)} only")
    if record.key != timer["timer_id"].encode():
        raise DecodeError("the key is not the timer_id")
    return timer


class Heap:
    """The pending timers of one partition: last record per id wins, the earliest due comes first."""

    def __init__(self) -> None:
        self._pending: dict[bytes, tuple[int, bytes]] = {}  # key → (due_at, record bytes)
        self._order: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, key: bytes, due_at: int, value: bytes) -> None:
        self._pending[key] = (due_at, value)
        heapq.heappush(self._order, (due_at, key))

    def drop(self, key: bytes) -> None:
        self._pending.pop(key, None)  # its place in the order is skipped when it comes up

    def due(self, now: int, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` (key, record bytes) due at `now`, earliest first; they stay pending until dropped."""
        found: list[tuple[bytes, bytes]] = []
        seen: set[bytes] = set()
        while self._order and self._order[0][0] <= now and len(found) < limit:
            due_at, key = heapq.heappop(self._order)
            current = self._pending.get(key)
            if current is not None and current[0] == due_at and key not in seen:
                seen.add(key)
                found.append((key, current[1]))
        return found

    def next_due(self) -> int | None:
        """When the next timer is due; may be too early, never too late."""
        return self._order[0][0] if self._order else None


class Timers:
    """Owns the partitions the group gives it; every call on one thread."""

    def __init__(self, context: Context, producer: Producer, clock: Clock = system_clock) -> None:
        self._context, self._producer, self._clock = context, producer, clock
        self._heaps: dict[Partition, Heap] = {}
        self._assigned = False
        self._consumer = Consumer(context.settings.kafka, client_id="timers", group=TIMERS_GROUP, notice_end=True)

    def run(self) -> None:
        """Read, fire and wait until the context stops."""
        self._context.health.require("group", lambda: None if self._assigned else "joining the group")
        self._context.health.started()
        self._consumer.subscribe([TIMERS], on_assign=self._on_assign, on_revoke=self._on_revoke)
        try:
            while not self._context.stopping.is_set():
                self.take(self._consumer.consume(5_000, self._wait_s()))
                self.fire()
        finally:
            self._consumer.close()

    def _on_assign(self, partitions: list[Partition]) -> dict[Partition, int]:
        self._heaps = {partition: Heap() for partition in partitions}
        self._consumer.reached_end.clear()
        self._assigned = True
        return dict.fromkeys(partitions, BEGINNING)

    def _on_revoke(self, _: list[Partition]) -> None:
        self._heaps = {}

    def _wait_s(self) -> float:
        """Until the next timer is due, between 1 and 100 ms."""
        upcoming = [due for heap in self._heaps.values() if (due := heap.next_due()) is not None]
        if not upcoming:
            return 0.1
        return min(0.1, max(0.001, (min(upcoming) - self._clock()) / 1000))

    def take(self, records: Iterable[InRecord]) -> None:
        """Put timers in, take cancelled ones out; dead-letter what is none and clear it away."""
        letters: list[OutRecord] = []
        for record in records:
            heap = self._heaps.get((record.topic, record.partition))
            if heap is None:
                continue
            if record.value is None and record.key is not None:
                heap.drop(record.key)
                continue
            try:
                timer = decode_timer(record)
            except DecodeError as exc:
                letters.append(dead_letter(record, stage="timers", reason=UNDECODABLE, error=exc, now=self._clock()))
                if record.key is not None:
                    letters.append(OutRecord(TIMERS, record.key, None, partition=record.partition))
            else:
                assert record.key is not None and record.value is not None
                heap.put(record.key, timer["due_at"], record.value)
        self._producer.publish(letters)

    def fire(self) -> None:
        """Publish what is due, then tombstone it."""
        now = self._clock()
        for partition, heap in self._heaps.items():
            if partition not in self._consumer.reached_end:
                continue  # a tombstone may still come
            while due := heap.due(now, _MAX_FIRE):
                timers = [cast(Timer, codec("Timer").decode(value)) for _, value in due]
                self._producer.publish([_fired(timer) for timer in timers])
                self._producer.publish([OutRecord(TIMERS, key, None, partition=partition[1]) for key, _ in due])
                done = self._clock()
                for (key, _), timer in zip(due, timers, strict=True):
                    heap.drop(key)
                    TIMERS_FIRED.labels(timer["purpose"]).inc()
                    TIMER_LATENESS_SECONDS.observe(max(0, done - timer["due_at"]) / 1000)
        TIMERS_PENDING.set(sum(len(heap) for heap in self._heaps.values()))


def _fired(timer: Timer) -> OutRecord:
    headers = [(header["name"], header["value"]) for header in timer["headers"]]
    return OutRecord(timer["topic"], timer["key"], timer["value"], headers)


async def run_timers(context: Context) -> None:
    """Fire timers until the context stops."""
    producer = Producer(context.settings.kafka, client_id="timers", linger_ms=1)
    try:
        await asyncio.to_thread(Timers(context, producer).run)
    finally:
        producer.close()
