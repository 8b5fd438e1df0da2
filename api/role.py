"""The role `api`: one process that serves ingest, reference data, status and its own health on one port.

    listen, connect, catch up, serve; on SIGTERM: stop listening, finish what is in flight, flush, disconnect

May import every layer. Never: a route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import uvloop
from fastapi import APIRouter
from starlette.routing import BaseRoute

from api.app import Deps, create_app
from api.graphql import endpoint as graphql
from api.graphql.endpoint import GraphqlEndpoint
from api.graphql.services import Services
from api.ingest import Ingest
from api.live import socket, stream
from api.live.access import LiveAuthenticator, StreamTokens
from api.live.socket import SocketEndpoint
from api.live.stream import StreamEndpoint
from api.live.tokens import tokens_router
from api.notifications.control import control_router
from api.notifications.explain import explain_router
from api.notifications.listing import listing_router
from api.notifications.status import status_router
from api.rate_limit import RateLimiter
from api.reference.preview import preview_router
from api.reference.responses import WriteResponses
from api.reference.webhooks import WebhookSecrets, webhooks_router
from api.requests import Authenticator
from producers.acceptance import Acceptance, RecentAcceptances
from producers.reference.catalogue import TemplateCatalogue
from producers.reference.database import Database
from producers.reference.idempotency import IdempotencyKeys
from producers.reference.keys import Keys
from producers.reference.propagation import Propagation
from producers.reference.resends import Resends
from producers.reference.service import ReferenceService
from producers.reference.store import ReferenceStore
from producers.reference.template_check import TemplateCheck
from producers.reference.webhooks import WebhookStore
from runtime.http.outages import Outages
from runtime.http.serving import listen, serve
from runtime.kafka.producer import Producer
from runtime.process import Context, allow_open_files
from runtime.views import View, start_views
from runtime.workers import Workers
from schemas.events import HookPosition, Template
from schemas.topics import HOOK_POSITIONS, TEMPLATES
from senders.hooks.posting import HookClient
from tracking.control import Control
from tracking.listing import Listing
from tracking.live.hub import Hub
from tracking.original import find_request
from tracking.preview import Previewer
from tracking.status import Statuses, StatusStore

LINGER_MS = 1.0

new_event_loop = uvloop.new_event_loop
"""For run_role: this role's loop."""


def _store_routes(
    authenticator: Authenticator,
    store: StatusStore,
    statuses: Statuses,
    listing: Listing,
    control: Control,
) -> Sequence[APIRouter | BaseRoute]:
    """The routes that need the store of analytics."""
    return [
        listing_router(listing, authenticator),
        status_router(statuses, authenticator),
        control_router(control, authenticator),
        explain_router(store, statuses, authenticator),
    ]


async def _end_streams(stopping: asyncio.Event, hub: Hub, graphql: GraphqlEndpoint) -> None:
    await stopping.wait()
    hub.stop()
    graphql.stop()


async def run(context: Context) -> None:
    """The role. Raises UnavailableError when the port is in use or PostgreSQL does not answer at the start."""
    settings = context.settings
    listener = listen(settings.api.host, settings.api.port, "HELIOGRAPH_API__PORT")
    database = Database(settings.postgres)
    idempotency = IdempotencyKeys(database)
    templates: View[Template] = View(settings.kafka, TEMPLATES)
    positions: View[HookPosition] = View(settings.kafka, HOOK_POSITIONS)
    hooks = HookClient(settings.outbound)
    workers = Workers()
    producer: Producer | None = None
    hub: Hub | None = None
    ending: asyncio.Task[None] | None = None
    allow_open_files()
    try:
        await database.open()
        keys = Keys(database, settings.api.key_pepper)
        await keys.load()
        idempotency.start()
        producer = Producer(
            settings.kafka, client_id="api", linger_ms=LINGER_MS, delivery_timeout_s=settings.api.publish_timeout_s
        )
        start_views([templates, positions], context.health)
        hooks.start()
        store = ReferenceStore(database)
        catalogue = TemplateCatalogue(templates, store)
        limit = settings.api.rate_limit_per_second
        authenticator = Authenticator(keys, RateLimiter(limit) if limit is not None else None)
        recent = RecentAcceptances()
        outages = Outages()
        acceptance = Acceptance(
            broker=producer,
            idempotency=idempotency,
            templates=catalogue,
            recent=recent,
            publish_timeout_s=settings.api.publish_timeout_s,
            recovered=outages.over,
        )
        propagation = Propagation(store.unpublished)
        reference = ReferenceService(store, catalogue, TemplateCheck(store, workers), propagation)
        status_store = StatusStore(settings.clickhouse)
        statuses = Statuses(status_store, recent.find)
        hub = Hub(settings.kafka, settings.live, statuses, keys.revoked_of)
        tokens = StreamTokens(settings.api.key_pepper)
        live_authenticator = LiveAuthenticator(authenticator, tokens, keys)
        origins = list(settings.live.allowed_origins)
        listing = Listing(status_store)
        control = Control(statuses, producer, Resends(database), partial(find_request, settings.kafka))
        previewer = Previewer(workers)
        services = Services(
            authenticator,
            acceptance,
            statuses,
            status_store,
            listing,
            control,
            reference,
            store,
            previewer,
            hub,
            outages,
        )
        endpoint = GraphqlEndpoint(services, origins)
        deps = Deps(
            Ingest(authenticator, acceptance, outages),
            authenticator,
            store,
            reference,
            context.health,
            {
                stream.PATH: StreamEndpoint(hub, live_authenticator, origins),
                socket.PATH: SocketEndpoint(hub, live_authenticator, origins),
                graphql.PATH: endpoint,
                graphql.SDL_PATH: endpoint,
            },
        )
        more = [
            *_store_routes(authenticator, status_store, statuses, listing, control),
            tokens_router(tokens, authenticator),
            preview_router(store, authenticator, previewer),
            webhooks_router(
                WebhookStore(database),
                WebhookSecrets(settings.hooks),
                positions,
                hooks,
                WriteResponses(propagation),
                authenticator,
            ),
        ]
        app = create_app(deps, more)
        context.health.started()
        # uvicorn waits for answers that go on: they end by themselves as soon as the process is asked to stop.
        ending = asyncio.create_task(_end_streams(context.stopping, hub, endpoint))
        await serve(app, listener, context.stopping, context.health, settings.api.drain_s)
    finally:
        listener.close()
        if ending is not None:
            ending.cancel()
        if hub is not None:
            await hub.close()
        await idempotency.close()
        await asyncio.to_thread(workers.close)
        await database.close()
        templates.close()
        positions.close()
        await hooks.close()
        if producer is not None:
            await asyncio.to_thread(producer.close)
