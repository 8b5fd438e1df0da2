"""The router under a plain consumer loop: the same function, as comparator and escape hatch (router.engine = "loop").

May import runtime. Never: Faust, a decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from processors.groups import router_group
from processors.router.enrich import MAX_BATCH_S, RouterViews, count_dead_letters, enrich_some
from processors.router.refused import ROUNDS, instead
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import DeadLetterBrake
from runtime.errors import DeadLetterFlood, PublishError, TooLargeError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import CommitError, Consumer, FencedError
from runtime.kafka.producer import Producer
from runtime.logs import get_logger
from runtime.metrics import ROUTER_BATCH_SECONDS
from runtime.process import Context, crash_point
from runtime.records import ConsumerRecord, ProducerRecord
from schemas.topics import requests_topic

log = get_logger("router")


class RequestConsumer(Protocol):
    """The part of runtime.kafka.Consumer that is used: a member of the lane's group."""

    def subscribe(
        self,
        topics: Sequence[str],
        *,
        on_assign: Callable[[list[Partition]], None],
        on_revoke: Callable[[list[Partition]], None],
    ) -> None: ...
    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]: ...
    def progress(self) -> dict[Partition, int]: ...
    def commit(self, offsets: Mapping[Partition, int]) -> None: ...
    def pause(self, partitions: Iterable[Partition]) -> None: ...
    def resume(self, partitions: Iterable[Partition]) -> None: ...
    def close(self) -> None: ...


class Publisher(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    def publish(self, records: Sequence[ProducerRecord]) -> None: ...


def next_offsets(records: Sequence[ConsumerRecord]) -> dict[Partition, int]:
    """The offset after the last record, per partition."""
    offsets: dict[Partition, int] = {}
    for record in records:
        partition = (record.topic, record.partition)
        offsets[partition] = max(offsets.get(partition, 0), record.offset + 1)
    return offsets


def publish(producer: Publisher, out: Sequence[ProducerRecord], clock: Clock) -> None:
    """Wait for every acknowledgement; what Kafka refuses for its size is replaced. Raises PublishError."""
    for _ in range(ROUNDS):
        try:
            producer.publish(out)
        except TooLargeError as exc:
            out = instead(exc.records, clock())
        else:
            return
    raise PublishError(f"Kafka refuses {len(out)} records for their size, however small")


async def run_loop(context: Context, lane: str, views: RouterViews, producer: Producer) -> None:
    """Route a lane until the context stops: publish, wait for every acknowledgement, commit."""
    consumer = Consumer(context.settings.kafka, client_id=f"router-{lane}", group=router_group(lane))
    await asyncio.to_thread(LaneLoop(context, lane, views, producer, consumer).run)


class LaneLoop:
    """One lane; every method on one thread."""

    def __init__(
        self,
        context: Context,
        lane: str,
        views: RouterViews,
        producer: Publisher,
        consumer: RequestConsumer,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._context = context
        self._lane = lane
        self._views = views
        self._producer = producer
        self._consumer = consumer
        self._clock = clock
        self._monotonic = monotonic
        self._assigned = False
        self._owned: set[Partition] = set()
        self._buffered: list[ConsumerRecord] = []
        """Read and not routed yet: what a slow batch left over."""
        self._brake = DeadLetterBrake(context.settings.dead_letters, "router", monotonic=monotonic)
        self._batch_seconds = ROUTER_BATCH_SECONDS.labels(lane)
        context.health.require(f"dead letters {lane}", self._brake.not_ready)
        context.health.require(f"group {lane}", lambda: None if self._assigned else "joining the group")

    def run(self) -> None:
        """Route until the context stops; once the brake holds, only stay a member of the group."""
        self._consumer.subscribe([requests_topic(self._lane)], on_assign=self._on_assign, on_revoke=self._on_revoke)
        stopping = self._context.stopping
        try:
            while not stopping.is_set():
                try:
                    self.run_once()
                except DeadLetterFlood as exc:
                    log.critical("halted", lane=self._lane, reason=str(exc))
                    break
            while not stopping.is_set():
                self._consumer.pause(self._owned)
                self._consumer.consume(1, 0.2)
        finally:
            self._consumer.close()

    def run_once(self) -> None:
        """Read, route for a second at most, commit. Raises DeadLetterFlood before it dead-letters, and PublishError."""
        self._read()
        done = self._buffered[: self._route()]
        del self._buffered[: len(done)]
        try:
            # With nothing buffered, also without a record: offsets without a record (a transaction's end) count as read.
            self._consumer.commit(next_offsets(done) if self._buffered else self._consumer.progress())
        except (FencedError, CommitError) as exc:
            # Published but not committed: whoever owns the partition does it again, under the same ids.
            log.warning("commit not confirmed", error=str(exc))

    def _on_assign(self, partitions: list[Partition]) -> None:
        self._assigned = True
        self._owned.update(partitions)

    def _on_revoke(self, partitions: list[Partition]) -> None:
        self._owned.difference_update(partitions)
        self._buffered.clear()

    def _read(self) -> None:
        if not self._buffered:
            self._buffered.extend(self._consumer.consume(self._context.settings.router.batch_size, 0.2))
            return
        # The group hears of us between the pieces of a batch; nothing more is taken until it is done.
        self._consumer.pause(self._owned)
        self._buffered.extend(self._consumer.consume(1, 0))
        self._consumer.resume(self._owned)

    def _route(self) -> int:
        """Publish the output of the first buffered records; how many records that were."""
        if not self._buffered:
            return 0
        started = self._monotonic()
        taken, out = enrich_some(
            self._buffered, self._views, self._clock(), lambda: self._monotonic() - started < MAX_BATCH_S
        )
        self._brake.check(taken, count_dead_letters(out))
        publish(self._producer, out, self._clock)
        crash_point("router_after_publish", self._context.settings.crash_at)
        self._batch_seconds.observe(self._monotonic() - started)
        return taken
