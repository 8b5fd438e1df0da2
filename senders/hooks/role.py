"""The role `hooks`: its clients, the view of the endpoints, and the stage.

May import runtime and the modules beside it. Never: a fact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import uvloop

from runtime.kafka.consumer import Consumer
from runtime.kafka.producer import Producer
from runtime.lag import report_lag
from runtime.process import Context
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.sealing import Sealer
from runtime.settings import KafkaSettings
from runtime.stores import MemoryStore
from runtime.views import Publish, View, caught_up, start_views
from schemas.events import Endpoint
from schemas.topics import ENDPOINTS, STATUS
from senders.hooks.posting import HookClient
from senders.hooks.reading import Reader
from senders.hooks.stage import GROUP, Hooks

PUBLISH_TIMEOUT_S = 10.0
SESSION_TIMEOUT_MS = 6_000
"""The least that brokers allow: so long the partitions of a killed process are nobody's."""
new_event_loop = uvloop.new_event_loop
"""For run_role: this role's loop."""


class EndpointView(View[Endpoint]):
    """The endpoints, by `tenant:endpoint_id`; `changed` hears the keys of what was read, on the reader's thread."""

    def __init__(self, settings: KafkaSettings, publish: Publish, changed: Callable[[list[bytes]], None]) -> None:
        self.records = MemoryStore()
        super().__init__(settings, ENDPOINTS, store=self.records, publish=publish)
        self._changed = changed

    def apply(self, records: Iterable[ConsumerRecord]) -> list[ProducerRecord]:
        """Apply records, and say which."""
        records = list(records)
        dead_letters = super().apply(records)
        if keys := [record.key for record in records if record.key is not None]:
            self._changed(keys)
        return dead_letters


async def run_hooks(context: Context) -> None:
    """Tell customers' endpoints of facts until the context stops. Raises SettingsError without a key."""
    settings = context.settings
    sealer, loop = Sealer(settings.hooks.key), asyncio.get_running_loop()
    client = HookClient(settings.outbound)
    client.start()
    producer = Producer(settings.kafka, client_id="hooks", delivery_timeout_s=PUBLISH_TIMEOUT_S)
    stage: Hooks | None = None

    def apply(keys: Iterable[bytes]) -> None:
        for key in keys:
            text = key.decode("utf-8", "replace")
            if stage is not None:
                stage.change(text.rpartition(":")[2], view.get(text))

    def changed(keys: list[bytes]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(apply, keys)

    view = EndpointView(settings.kafka, producer.publish, changed)
    start_views([view], context.health)
    lag = asyncio.create_task(report_lag(settings.kafka, GROUP, [STATUS], context.stopping))
    try:
        if not await caught_up([view], context.stopping):
            return
        stage = Hooks(
            context,
            Consumer(settings.kafka, client_id="hooks", group=GROUP, session_timeout_ms=SESSION_TIMEOUT_MS),
            Reader(settings.kafka),
            producer,
            client,
            sealer,
        )
        apply([key for key, _ in view.records.items()])
        context.health.require("hooks", stage.not_ready)
        context.health.started()
        await stage.run()
    finally:
        lag.cancel()
        view.close()
        await client.close()
        await asyncio.to_thread(producer.close)
