"""The role `router`: views, producer and an engine, put together for one lane.

May import runtime and the engines. What never enters here: a decision.
"""

from __future__ import annotations

import asyncio

from processors.enrich import RouterViews
from processors.groups import router_group
from runtime.kafka import Producer
from runtime.lag import report_lag
from runtime.process import Context
from runtime.stores import Store
from runtime.views import View, caught_up, open_store, start_views
from schemas.events import Cancellation, RecipientProfile, Suppression, Template
from schemas.topics import CANCELLATIONS, RECIPIENTS, SUPPRESSIONS, TEMPLATES, requests_topic


async def run_router(context: Context, lane: str) -> None:
    """Route a lane's requests until the context stops; the first record is read after every view has caught up."""
    kafka = context.settings.kafka
    producer = Producer(kafka, client_id=f"router-{lane}", linger_ms=5 if lane == "bulk" else 1)
    report = producer.publish

    def store(topic: str) -> Store:
        return open_store(context.settings.views, context.role, topic)

    recipients: View[RecipientProfile] = View(kafka, RECIPIENTS, store=store(RECIPIENTS), report=report)
    templates: View[Template] = View(kafka, TEMPLATES, store=store(TEMPLATES), report=report)
    suppressions: View[Suppression] = View(kafka, SUPPRESSIONS, store=store(SUPPRESSIONS), report=report)
    cancellations: View[Cancellation] = View(kafka, CANCELLATIONS, store=store(CANCELLATIONS), report=report)
    views = (recipients, templates, suppressions, cancellations)
    start_views(views, context.health)
    try:
        if not await caught_up(views, context.stopping):
            return
        group, topics = router_group(lane), [requests_topic(lane)]
        lag = asyncio.create_task(report_lag(kafka, group, topics, context.stopping))
        router_views = RouterViews(recipients, templates, suppressions, cancellations)
        if context.settings.router.engine == "faust":
            from processors.agents import run_faust  # Faust and its patches only where they are wanted

            await run_faust(context, lane, router_views, producer)
        else:
            from processors.loop import run_loop

            await run_loop(context, lane, router_views, producer)
        await lag
    finally:
        for view in views:
            view.close()
        producer.close()
