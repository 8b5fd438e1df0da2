"""The role `router`: views, producer and an engine per lane, put together.

May import runtime and the engines. Never: a decision.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence

from processors.groups import router_group
from processors.router.enrich import RouterViews
from runtime.conditions import ConditionReporter, Down
from runtime.kafka.producer import Producer
from runtime.lag import report_lag
from runtime.process import Context
from runtime.stores import Store
from runtime.views import View, caught_up, open_store, start_views
from schemas.events import Cancellation, RecipientProfile, Suppression, Template
from schemas.topics import CANCELLATIONS, RECIPIENTS, SUPPRESSIONS, TEMPLATES, requests_topic

BULK_NICENESS = 10


async def run_router(context: Context, lanes: Sequence[str]) -> None:
    """Route the requests of `lanes` until the context stops; the first is read after every view has caught up."""
    kafka = context.settings.kafka
    bulk = list(lanes) == ["bulk"]
    if bulk:
        os.nice(BULK_NICENESS)  # on a machine that it shares with them, a blast takes what the other roles leave
    producer = Producer(kafka, client_id=context.role, linger_ms=5 if bulk else 1)
    publish = producer.publish

    def store(topic: str) -> Store:
        return open_store(context.settings.views, context.role, topic)

    recipients: View[RecipientProfile] = View(kafka, RECIPIENTS, store=store(RECIPIENTS), publish=publish)
    templates: View[Template] = View(kafka, TEMPLATES, store=store(TEMPLATES), publish=publish)
    suppressions: View[Suppression] = View(kafka, SUPPRESSIONS, store=store(SUPPRESSIONS), publish=publish)
    cancellations: View[Cancellation] = View(kafka, CANCELLATIONS, store=store(CANCELLATIONS), publish=publish)
    views = (recipients, templates, suppressions, cancellations)
    for lane in lanes:
        context.health.require(f"group {lane}", lambda: "waits for the views")  # the engine replaces it
    start_views(views, context.health)
    context.health.started()
    if context.settings.router.engine == "faust":
        from processors.router.agents import run_faust as run_lane  # Faust and its patches only where they are wanted
    else:
        from processors.router.loop import run_loop as run_lane

    def what_is_down() -> Iterator[Down]:
        for lane in lanes:
            halted = context.health.conditions.get(f"dead letters {lane}")
            if halted is not None and (reason := halted()):
                yield Down("router", lane, reason)

    async def route(lane: str) -> None:
        group, topics = router_group(lane), [requests_topic(lane)]
        lag = asyncio.create_task(report_lag(kafka, group, topics, context.stopping))
        try:
            # Views of its own: the template engine in them belongs to one thread.
            await run_lane(context, lane, RouterViews(recipients, templates, suppressions, cancellations), producer)
        finally:
            context.stopping.set()  # one lane's end is the process's end
        await lag

    try:
        if await caught_up(views, context.stopping):
            reporting = asyncio.create_task(ConditionReporter(producer, context.role, what_is_down).run())
            try:
                await asyncio.gather(*(route(lane) for lane in lanes))
            finally:
                reporting.cancel()
    finally:
        for view in views:
            view.close()
        producer.close()
