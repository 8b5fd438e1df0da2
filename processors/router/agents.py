"""The router under Faust: one agent in the only pattern that lost nothing in kills, SIGTERMs and rebalances.

    take everything queued → drop what a rebalance made stale, unacknowledged → enrich_batch → publish, wait for every
    broker acknowledgement → acknowledge the events

Closing the generator of `take_events` acknowledges what was never published, and an exception in an agent is acknowledged
too: so the agent reads the channel's queue itself, and any doubt ends the process with nothing acknowledged.
Only this module and app.py import faust. Never: a decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from processors.groups import router_group
from processors.router.app import create_app
from processors.router.enrich import MAX_BATCH_S, RouterViews, enrich_some, given_up
from processors.router.refused import ROUNDS, instead
from runtime.clock import Clock, system_clock
from runtime.dead_letters import Brake
from runtime.errors import DeadLetterFlood, PublishError, TooLargeError, UnavailableError
from runtime.kafka.admin import Admin
from runtime.kafka.producer import Producer
from runtime.lag import unread
from runtime.logs import get_logger
from runtime.metrics import ROUTER_BATCH_SECONDS
from runtime.process import Context, crash_point, exit_now
from runtime.records import InRecord, OutRecord
from schemas.topics import requests_topic

log = get_logger("router")


def _in_record(event: Any) -> InRecord:
    message = event.message
    return InRecord(
        message.topic, message.partition, message.offset, round((message.timestamp or 0) * 1000), message.key,
        message.value, message.headers or (),
    )  # fmt: skip


async def _next_batch(queue: Any, limit: int) -> list[Any]:
    """At least one event, and what is queued behind it; no timer."""
    events = [await queue.get()]
    while len(events) < limit and not queue.empty():
        events.append(queue.get_nowait())
    return events


async def send(producer: Producer, out: Sequence[OutRecord], clock: Clock) -> None:
    """Wait for every acknowledgement; what Kafka refuses for its size is replaced. Raises PublishError."""
    for _ in range(ROUNDS):
        try:
            await producer.send(out)
        except TooLargeError as exc:
            out = instead(exc.records, clock())
        else:
            return
    raise PublishError(f"Kafka refuses {len(out)} records for their size, however small")


async def _watch_assignment(app: Any, context: Context, lane: str) -> None:
    """End a process that owns nothing while its lane stands still.

    After a broker's restart Faust's assignor may miss the topic in stale metadata, own no partition and stay content.
    """
    topics, admin = [requests_topic(lane)], Admin(context.settings.kafka, timeout_s=5)
    idle, before = 0, None
    while True:
        await asyncio.sleep(2)
        if app.rebalancing or app.consumer.assignment():
            idle, before = 0, None
            continue
        idle += 1
        if idle < 4:
            continue
        try:
            committed, lag = await asyncio.to_thread(admin.group_offsets, router_group(lane), topics)
            if committed == before:
                lag = await asyncio.to_thread(unread, admin, committed, lag)
        except UnavailableError as exc:
            log.debug("assignment not judged", error=str(exc))
            continue
        if any(lag.values()) and committed == before:
            exit_now("no partition is ours and nobody routes the lane")
        before = committed


async def run_faust(
    context: Context, lane: str, views: RouterViews, producer: Producer, clock: Clock = system_clock
) -> None:
    """Route a lane until the context stops."""
    app = create_app(context.settings, lane)
    limit = context.settings.router.batch_size
    batch_seconds = ROUTER_BATCH_SECONDS.labels(lane)
    brake = Brake(context.settings.dead_letters, "router")

    async def route(stream: Any) -> None:
        try:
            await _route(stream.channel.queue)
        except (asyncio.CancelledError, StopAsyncIteration):
            raise  # SIGTERM: the batch in hand stays unacknowledged
        except DeadLetterFlood as exc:
            log.critical("held", lane=lane, reason=str(exc))
            await asyncio.Event().wait()  # with its place in the group and nothing acknowledged, until SIGTERM
        except PublishError as exc:
            exit_now(str(exc))
        except Exception:
            log.exception("router stopped")
            exit_now("an error the router does not know; nothing of the batch is acknowledged")

    async def _route(queue: Any) -> None:
        while True:
            events = await _next_batch(queue, limit)
            while events:
                # Of a slow batch a piece at a time: the partitions may go and come in between.
                generation = app.consumer_generation_id
                if not app.flow_control.is_active():
                    break
                events = [event for event in events if event.message.generation_id == generation]
                events = events[await _route_some(events, generation) :]

    async def _route_some(events: list[Any], generation: int) -> int:
        """Route the first of these; how many."""
        if not events:
            return 0
        started = time.perf_counter()
        taken, out = enrich_some(
            [_in_record(event) for event in events], views, clock(), lambda: time.perf_counter() - started < MAX_BATCH_S
        )
        brake.check(taken, given_up(out))
        await send(producer, out, clock)
        crash_point("router_after_publish", context.settings.crash_at)
        if app.consumer_generation_id == generation:
            for event in events[:taken]:
                event.ack()
        batch_seconds.observe(time.perf_counter() - started)
        return taken

    topic = app.topic(requests_topic(lane), key_type=bytes, value_type=bytes)
    app.agent(topic, name=f"route-{lane}", concurrency=1)(route)
    context.health.require(f"dead letters {lane}", brake.not_ready)
    context.health.require(
        f"group {lane}", lambda: None if app.rebalancing_count > 0 and not app.rebalancing else "joining the group"
    )
    app.finalize()
    await app.start()
    watching = asyncio.create_task(_watch_assignment(app, context, lane))
    stopping = asyncio.ensure_future(context.stopping.wait())
    crashed = asyncio.ensure_future(app.wait_until_stopped())
    await asyncio.wait({stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
    if not context.stopping.is_set():
        exit_now("Faust stopped by itself")
    watching.cancel()
    crashed.cancel()
    await app.stop()
