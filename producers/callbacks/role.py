"""The role `callbacks`: listens where providers report, behind a public address; health and metrics are on a port of their own.

May import runtime and api. Never: a route, a vendor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import urlsplit

import uvloop

from producers.callbacks.accounts import ReportAccounts
from producers.callbacks.app import CallbackEndpoint, create_app
from runtime.callbacks import PATH
from runtime.clock import system_clock
from runtime.errors import SettingsError
from runtime.http.serving import listen, serve
from runtime.kafka.producer import Producer
from runtime.logs import get_logger
from runtime.process import Context, crash_point
from runtime.provider_files import follow
from runtime.references import RETENTION_S, forget_old
from runtime.settings import CallbackSettings, ProviderSettings, Settings
from runtime.stores import Store
from runtime.views import View, caught_up, open_store, start_views
from schemas.events import Reference
from schemas.topics import REFERENCES
from vendors.registry import VENDORS

LINGER_MS = 1.0
"""Callbacks come as batches already (batcher.py)."""
FORGET_EVERY_S = 3_600.0

log = get_logger("callbacks")

new_event_loop = uvloop.new_event_loop
"""For run_role: this role's loop."""


def public_url(settings: CallbackSettings) -> str:
    """The address by which providers reach this role. Raises SettingsError."""
    parts = urlsplit(settings.public_url or "")
    try:
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port
        usable = False
    if not usable or parts.query or parts.fragment:
        raise SettingsError(
            "set HELIOGRAPH_CALLBACKS__PUBLIC_URL to the address by which providers reach this role, as in"
            " https://notify.shop.example: they sign it"
        )
    return (settings.public_url or "").rstrip("/")


def misdirected(settings: Settings, public: str) -> list[str]:
    """Names of the accounts whose settings send callbacks to another URL than this one."""
    reporting = {vendor.kind for vendor in VENDORS if vendor.has_reports}
    return [
        provider.name
        for provider in settings.providers
        if provider.kind in reporting
        and (url := (provider.model_extra or {}).get("callback_url"))
        and str(url).partition("#")[0].partition("?")[0] != f"{public}{PATH}{provider.kind}"
    ]


async def _forget(store: Store) -> None:
    """Forget old references until cancelled."""
    while True:
        await asyncio.sleep(FORGET_EVERY_S)
        await asyncio.to_thread(forget_old, store, system_clock())


async def run_callbacks(context: Context) -> None:
    """The role. Raises SettingsError, and UnavailableError when the port is in use."""
    settings = context.settings
    public, accounts = public_url(settings.callbacks), ReportAccounts(settings.providers)
    for name in misdirected(settings, public):
        log.warning(
            "the account's callback_url leads elsewhere: its reports will not come, or be refused", provider=name
        )

    async def take_over(providers: Sequence[ProviderSettings]) -> None:
        accounts.replace(providers)

    listener = listen(settings.callbacks.host, settings.callbacks.port, "HELIOGRAPH_CALLBACKS__PORT")
    producer = Producer(
        settings.kafka,
        client_id="callbacks",
        linger_ms=LINGER_MS,
        delivery_timeout_s=settings.callbacks.publish_timeout_s,
    )
    store = open_store(settings.views, context.role, REFERENCES, RETENTION_S)
    references: View[Reference] = View(settings.kafka, REFERENCES, store=store, publish=producer.publish)
    start_views([references], context.health)
    try:
        if not await caught_up([references], context.stopping):
            return
        endpoint = CallbackEndpoint(
            producer,
            public,
            crash_here=lambda name: crash_point(name, settings.crash_at),
            references=references,
            tenants=accounts.tenants,
            publish_timeout_s=settings.callbacks.publish_timeout_s,
        )
        following = asyncio.create_task(follow(settings.providers, take_over, context.health))
        forgetting = asyncio.create_task(_forget(store))
        context.health.started()
        await serve(
            create_app(accounts.readers(), endpoint),
            listener,
            context.stopping,
            context.health,
            settings.callbacks.drain_s,
        )
        following.cancel()
        forgetting.cancel()
    finally:
        listener.close()
        references.close()
        await asyncio.to_thread(producer.close)
