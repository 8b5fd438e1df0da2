"""The role `sender`: accounts, views, ledger and the worker, put together for one channel.

May import runtime. Never: a provider by name.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import uvloop

from runtime.clock import system_clock, system_monotonic
from runtime.conditions import ConditionReporter, Down
from runtime.consent import has_opt_outs
from runtime.dead_letters import publish_dead_letters
from runtime.kafka.producer import Producer
from runtime.lag import report_lag
from runtime.process import Context
from runtime.provider_files import follow
from runtime.stores import Store
from runtime.views import View, caught_up, open_store, start_views
from schemas.events import LANES, Cancellation, RecipientProfile, Suppression
from schemas.topics import CANCELLATIONS, RECIPIENTS, SUPPRESSIONS, dispatch_topic, ledger_ms
from senders.accounts import Account, Accounts
from senders.admission import Admission
from senders.consumers import dispatch_consumer, ledger_consumer, sender_group
from senders.ledger import Ledger, LedgerReader
from senders.recheck import SenderViews
from senders.renewal import AccountRenewal
from senders.stage import SendStage
from senders.worker import Worker
from vendors.registry import create_senders

SWITCH_INTERVAL_S = 0.0005
"""The Kafka thread and the event loop share one interpreter: with Python's 5 ms a conversation of six answers, each of which
waits for the other's turn to end, took 30 ms of a busy sender."""


new_event_loop = uvloop.new_event_loop
"""For run_role: this role's loop."""


def what_is_down(context: Context, channel: str, lanes: Sequence[str], accounts: Accounts) -> Iterator[Down]:
    """The accounts that do not work, and this process itself while its brake holds it: of its channel, or of the lanes it serves."""
    now = system_clock()
    for i in range(len(accounts)):
        if (trouble := accounts[i].trouble) is not None:
            since, next_at = now - int(trouble.failing_for_s * 1000), now + int(trouble.next_probe_in_s * 1000)
            yield Down("account", trouble.name, trouble.code, since, next_at, channel)
    if reason := context.health.conditions["dead letters"]():
        for name in [channel] if set(lanes) == set(LANES) else [f"{channel} {lane}" for lane in lanes]:
            yield Down("sender", name, reason, channel=channel)


async def run_sender(context: Context, channel: str, lanes: Sequence[str]) -> None:
    """Send a channel's messages until the context stops."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = context.settings
    senders = create_senders(channel, settings.providers, settings.outbound)

    def store(topic: str) -> Store:
        return open_store(settings.views, context.role, topic)

    suppressions: View[Suppression] = View(settings.kafka, SUPPRESSIONS, store=store(SUPPRESSIONS))
    opt_outs: View[RecipientProfile] = View(settings.kafka, RECIPIENTS, store=store(RECIPIENTS), keep=has_opt_outs)
    cancellations: View[Cancellation] = View(settings.kafka, CANCELLATIONS, store=store(CANCELLATIONS))
    views = (suppressions, opt_outs, cancellations)
    ledger = Ledger(open_store(settings.views, context.role, "ledger", ledger_ms() // 1_000))
    producer = Producer(settings.kafka, client_id=f"sender-{channel}", linger_ms=1)
    context.health.require("group", lambda: "waits for the views")
    start_views(views, context.health)
    context.health.started()
    breakers = {provider.name: provider.breaker for provider in settings.providers}
    accounts = Accounts([Account(sender, breakers[sender.name]) for sender in senders])
    renewal = AccountRenewal(channel, accounts, settings.providers, settings.outbound)
    try:
        for sender in senders:
            await sender.start()
        if not await caught_up(views, context.stopping):
            return
        looks = SenderViews(suppressions, opt_outs, cancellations)
        stage = SendStage(context, accounts, looks, system_clock, system_monotonic)
        admission = Admission(accounts, settings.sender.window)
        publish = partial(publish_dead_letters, producer.publish)
        worker = Worker(
            context,
            channel,
            lanes,
            consumer=dispatch_consumer(settings.kafka, channel),
            ledgers=LedgerReader(ledger_consumer(settings.kafka, channel), channel, ledger, publish),
            producer=producer,
            stage=stage,
            admission=admission,
            views=looks,
            ledger=ledger,
            rng=random.Random(),
        )
        context.health.require("group", lambda: None if worker.assigned else "joining the group")
        topics = [dispatch_topic(channel, lane) for lane in lanes]
        lag = asyncio.create_task(report_lag(settings.kafka, sender_group(channel), topics, context.stopping))
        reporter = ConditionReporter(producer, context.role, lambda: what_is_down(context, channel, lanes, accounts))
        reporting = asyncio.create_task(reporter.run())
        following = asyncio.create_task(follow(settings.providers, renewal.apply, context.health))
        await asyncio.to_thread(worker.run)
        following.cancel()
        reporting.cancel()
        await lag
    finally:
        await renewal.close()
        for view in views:
            view.close()
        ledger.close()
        producer.close()
