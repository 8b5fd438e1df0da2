"""OneSignal's notifications: JSON in and out, its errors, and its memory of idempotency keys.

Our message id is the idempotency key. A key that was taken once gets the same answer again, and no second accept.
May import the simulator's state and aiohttp. Never: a decision on scripted faults (faults.py), a OneSignal SDK.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from weakref import WeakValueDictionary

from aiohttp import web

from local.simulator import WRONG_SECRET
from local.simulator.callbacks import Callbacks
from local.simulator.ground_truth import Accept
from local.simulator.reports import onesignal_posts
from local.simulator.state import SimulatorState, answer

KIND = "onesignal"


def error(status: int, message: str, retry_after: str | None = None) -> web.Response:
    """An error as OneSignal writes it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.json_response({"errors": [message]}, status=status, headers=headers)


class OnesignalErrors:
    """Scripted faults in OneSignal's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return error(429, "API rate limit exceeded", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return error(500, "Internal Server Error")

    def rejected(self, recipient: str) -> web.Response:
        return web.json_response({"id": "", "errors": {"invalid_player_ids": [recipient]}})


def authenticated(request: web.Request) -> bool:
    """Whether it bears a key."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return scheme == "Key" and bool(key) and key != WRONG_SECRET


def add_onesignal_routes(app: web.Application, state: SimulatorState, callbacks: Callbacks) -> None:
    """Serve OneSignal's API."""
    errors = OnesignalErrors()
    entries = (json.loads(line) for line in state.truth.lines(KIND))
    made: dict[str, str] = {entry["message_id"]: entry["provider_message_id"] for entry in entries}
    keys: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def send(request: web.Request) -> web.Response:
        state.seen(KIND)
        if not authenticated(request):
            return error(403, "Access denied.  Please include an 'Authorization: ...' header with a valid API key")
        body = await request.read()
        try:
            push = json.loads(body)
            (subscription,) = push["include_subscription_ids"]
            key = str(uuid.UUID(push["idempotency_key"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return error(400, "include_subscription_ids has one id here, and idempotency_key is a UUID")
        if not push.get("app_id"):
            return error(400, "app_id not found")
        if not push.get("content_available") and not push.get("contents", {}).get("en"):
            return error(400, "Message Notifications must have English language content")
        # A request whose twin is still being looked at waits for it, as the first may be accepted yet.
        async with keys.setdefault(key, asyncio.Lock()):
            if key in made:
                headers = {"Idempotent-Replayed": "true"}
                return web.json_response({"id": made[key], "external_id": None}, headers=headers)
            their_id = str(uuid.uuid4())
            accept = Accept(KIND, subscription, key, body.decode("utf-8", "surrogateescape"), their_id)
            success = {"id": their_id, "external_id": None}

            def remember() -> None:
                made[key] = their_id
                if (target := callbacks.targets.get(KIND)) is not None:
                    callbacks.report(onesignal_posts(target, subscription, their_id), target)

            return await answer(state, request, errors, accept, lambda: web.json_response(success), remember)

    async def latest(request: web.Request) -> web.Response:
        if not authenticated(request):
            return error(403, "Access denied.")
        return web.json_response({"total_count": 0, "offset": 0, "limit": 1, "notifications": []})

    app.router.add_post("/notifications", send)
    app.router.add_get("/notifications", latest)
