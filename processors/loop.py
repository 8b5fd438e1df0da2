"""The router under a plain consumer loop: the same function, as comparator and escape hatch (router.engine = "loop").

May import runtime. What never enters here: Faust, a decision.
"""

from __future__ import annotations

import asyncio
import time

from processors.enrich import RouterViews, enrich_batch, given_up
from processors.groups import router_group
from runtime.clock import Clock, system_clock
from runtime.dead_letters import Brake
from runtime.errors import DeadLetterFlood
from runtime.kafka import CommitError, Consumer, FencedError, Partition, Producer
from runtime.logs import get_logger
from runtime.metrics import ROUTER_BATCH_SECONDS
from runtime.process import Context, crash_point
from runtime.records import InRecord
from schemas.topics import requests_topic

log = get_logger("router")


def next_offsets(records: list[InRecord]) -> dict[Partition, int]:
    """The offset after the last record, per partition."""
    offsets: dict[Partition, int] = {}
    for record in records:
        partition = (record.topic, record.partition)
        offsets[partition] = max(offsets.get(partition, 0), record.offset + 1)
    return offsets


async def run_loop(
    context: Context, lane: str, views: RouterViews, producer: Producer, clock: Clock = system_clock
) -> None:
    """Route a lane until the context stops: publish, wait for every acknowledgement, commit."""
    await asyncio.to_thread(_route, context, lane, views, producer, clock)


def _route(context: Context, lane: str, views: RouterViews, producer: Producer, clock: Clock) -> None:
    assigned = False
    owned: set[Partition] = set()
    brake = Brake(context.settings.dead_letters, "router")

    def on_assign(partitions: list[Partition]) -> None:
        nonlocal assigned
        assigned = True
        owned.update(partitions)

    context.health.require(f"dead letters {lane}", brake.not_ready)
    context.health.require(f"group {lane}", lambda: None if assigned else "joining the group")
    consumer = Consumer(context.settings.kafka, client_id=f"router-{lane}", group=router_group(lane))
    consumer.subscribe([requests_topic(lane)], on_assign=on_assign, on_revoke=owned.difference_update)
    batch_seconds = ROUTER_BATCH_SECONDS.labels(lane)
    try:
        while not context.stopping.is_set():
            records = consumer.consume(context.settings.router.batch_size, 0.2)
            if not records:
                continue
            started = time.perf_counter()
            out = enrich_batch(records, views, clock())
            try:
                brake.check(len(records), given_up(out))
            except DeadLetterFlood as exc:
                log.critical("held", lane=lane, reason=str(exc))
                break
            producer.publish(out)
            crash_point("router_after_publish", context.settings.crash_at)
            try:
                consumer.commit(next_offsets(records))
            except (FencedError, CommitError) as exc:
                # Published but not committed: whoever owns the partition does it again, under the same ids.
                log.warning("commit not confirmed", error=str(exc))
            batch_seconds.observe(time.perf_counter() - started)
        while not context.stopping.is_set():  # held: a member of the group that reads on and does nothing
            consumer.pause(owned)
            consumer.consume(1, 0.2)
    finally:
        consumer.close()
