"""The router under Faust: one agent in the only pattern that lost nothing in kills, SIGTERMs and rebalances.

    take everything queued → drop what a rebalance made stale, unacknowledged → enrich_batch → publish, wait for every
    broker acknowledgement → acknowledge the events

Closing the generator of `take_events` acknowledges what was never published, and an exception in an agent is acknowledged
too: so the agent reads the channel's queue itself, and any doubt ends the process with nothing acknowledged.
Only this module and app.py import faust. Never: a decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from processors.groups import router_group
from processors.router.app import create_app
from processors.router.enrich import MAX_BATCH_S, RouterViews, count_dead_letters, enrich_some
from processors.router.refused import ROUNDS, instead
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import DeadLetterBrake
from runtime.errors import DeadLetterFlood, PublishError, TooLargeError, UnavailableError
from runtime.kafka.admin import Admin
from runtime.kafka.producer import Producer
from runtime.lag import unread
from runtime.logs import get_logger
from runtime.metrics import ROUTER_BATCH_SECONDS
from runtime.process import Context, crash_point
from runtime.records import ConsumerRecord, ProducerRecord
from schemas.topics import requests_topic

log = get_logger("router")


class Publisher(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    async def send(self, records: Sequence[ProducerRecord]) -> None: ...


class Flow(Protocol):
    """Faust's flow control: inactive while partitions come and go."""

    def is_active(self) -> bool: ...


class App(Protocol):
    """The part of faust.App that an agent looks at."""

    @property
    def consumer_generation_id(self) -> int:
        """The group's generation; an event of another one belongs to whoever owns its partition now."""

    @property
    def flow_control(self) -> Flow:
        """Whether events may be worked on now."""


def _consumer_record(event: Any) -> ConsumerRecord:
    message = event.message
    return ConsumerRecord(
        message.topic,
        message.partition,
        message.offset,
        round((message.timestamp or 0) * 1000),
        message.key,
        message.value,
        message.headers or (),
    )


async def _next_batch(queue: Any, limit: int) -> list[Any]:
    """At least one event, and what is queued behind it; no timer."""
    events = [await queue.get()]
    while len(events) < limit and not queue.empty():
        events.append(queue.get_nowait())
    return events


async def send(producer: Publisher, out: Sequence[ProducerRecord], clock: Clock) -> None:
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
    """End a process that owns no partition while no process routes its lane.

    After a broker's restart Faust's assignor may miss the topic in stale metadata, own no partition and report no error.
    """
    topics = [requests_topic(lane)]
    admin = Admin(context.settings.kafka, timeout_s=5)
    idle = 0
    before = None
    while True:
        await asyncio.sleep(2)
        if app.rebalancing or app.consumer.assignment():
            idle = 0
            before = None
            continue
        idle += 1
        if idle < 4:
            continue
        try:
            committed, lag = await asyncio.to_thread(admin.group_offsets, router_group(lane), topics)
            if committed == before:
                lag = await asyncio.to_thread(unread, admin, committed, lag)
        except UnavailableError as exc:
            log.debug("assignment not checked", error=str(exc))
            continue
        if any(lag.values()) and committed == before:
            context.exit_now("this process owns no partition, and no process routes the lane")
        before = committed


class LaneAgent:
    """What one lane's agent does with its queue; every method on the event loop."""

    def __init__(
        self,
        context: Context,
        lane: str,
        views: RouterViews,
        producer: Publisher,
        app: App,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._context = context
        self._lane = lane
        self._views = views
        self._producer = producer
        self._app = app
        self._clock = clock
        self._monotonic = monotonic
        self._brake = DeadLetterBrake(context.settings.dead_letters, "router", monotonic=monotonic)
        self._batch_seconds = ROUTER_BATCH_SECONDS.labels(lane)
        context.health.require(f"dead letters {lane}", self._brake.not_ready)

    async def route(self, stream: Any) -> None:
        """The agent's body. It ends by cancellation only: any doubt ends the process."""
        try:
            await self.route_queue(stream.channel.queue)
        except (asyncio.CancelledError, StopAsyncIteration):
            raise  # SIGTERM: the current batch stays unacknowledged
        except DeadLetterFlood as exc:
            log.critical("halted", lane=self._lane, reason=str(exc))
            await asyncio.Event().wait()  # with its place in the group and nothing acknowledged, until SIGTERM
        except PublishError as exc:
            self._context.exit_now(str(exc))
        except Exception:
            log.exception("router stopped")
            self._context.exit_now("an error the router does not know; nothing of the batch is acknowledged")

    async def route_queue(self, queue: Any) -> None:
        """Route what is queued, without end. Raises DeadLetterFlood and PublishError with the batch unacknowledged."""
        while True:
            events = await _next_batch(queue, self._context.settings.router.batch_size)
            while events:
                # Of a slow batch a piece at a time: the partitions may go and come in between.
                generation = self._app.consumer_generation_id
                if not self._app.flow_control.is_active():
                    break
                events = [event for event in events if event.message.generation_id == generation]
                events = events[await self._route_some(events, generation) :]

    async def _route_some(self, events: Sequence[Any], generation: int) -> int:
        """Route the first of these; how many."""
        if not events:
            return 0
        started = self._monotonic()
        taken, out = enrich_some(
            [_consumer_record(event) for event in events],
            self._views,
            self._clock(),
            lambda: self._monotonic() - started < MAX_BATCH_S,
        )
        self._brake.check(taken, count_dead_letters(out))
        await send(self._producer, out, self._clock)
        crash_point("router_after_publish", self._context.settings.crash_at)
        if self._app.consumer_generation_id == generation:
            for event in events[:taken]:
                event.ack()
        self._batch_seconds.observe(self._monotonic() - started)
        return taken


async def run_faust(context: Context, lane: str, views: RouterViews, producer: Producer) -> None:
    """Route a lane until the context stops."""
    app = create_app(context.settings, lane)
    agent = LaneAgent(context, lane, views, producer, app)
    topic = app.topic(requests_topic(lane), key_type=bytes, value_type=bytes)
    app.agent(topic, name=f"route-{lane}", concurrency=1)(agent.route)
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
        context.exit_now("Faust stopped by itself")
    watching.cancel()
    crashed.cancel()
    await app.stop()
