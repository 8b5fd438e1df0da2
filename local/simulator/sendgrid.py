"""SendGrid's Mail Send: JSON in, 202 without a body out, and its errors; and the scopes of an API key.

Our message id is read from the custom arguments, which events repeat (reports.py) once the account has a URL for them
(callbacks.py). Limits are told as SendGrid tells them, in X-RateLimit-Reset.
May import the simulator's state and aiohttp. Never: a decision on scripted faults (faults.py), a SendGrid SDK.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from typing import Any

from aiohttp import web

from local.simulator import WRONG_SECRET
from local.simulator.callbacks import Callbacks
from local.simulator.ground_truth import Accept
from local.simulator.reports import EventsKey, sendgrid_posts
from local.simulator.state import Shown, SimulatorState, answer, reset_at, show

KIND = "sendgrid"
_QUERY = re.compile(r"unique_args\['message_id'\]=\"([^\"]+)\"")
_SCOPES = ["mail.send", "2fa_required"]


def error(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> web.Response:
    """An error as SendGrid writes it."""
    body = {"errors": [{"message": message, "field": field, "help": None}]}
    return web.json_response(body, status=status, headers=headers)


class SendgridErrors:
    """Scripted faults in SendGrid's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        reset = reset_at(retry_after, time.time())
        headers = {"X-RateLimit-Limit": "600", "X-RateLimit-Remaining": "0"}
        return error(429, "too many requests", headers=headers | ({"X-RateLimit-Reset": str(reset)} if reset else {}))

    def failed(self, retry_after: str | None) -> web.Response:
        return error(500, "An internal server error has occurred.")

    def rejected(self, recipient: str) -> web.Response:
        return error(400, "Does not contain a valid address.", "personalizations.0.to.0.email")


def authenticated(request: web.Request) -> bool:
    """Whether it bears a key."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return scheme == "Bearer" and bool(key) and key != WRONG_SECRET


def check_mail(payload: Any) -> web.Response | tuple[str, dict[str, str]]:
    """Recipient and custom arguments of a request, or why SendGrid would refuse it."""
    try:
        (personalization,) = payload["personalizations"]
        (recipient,) = personalization["to"]
        to = str(recipient["email"])
        sender = payload["from"]["email"]
    except (KeyError, TypeError, ValueError):
        return error(400, "The personalizations field is required and must have at least one personalization.")
    if "@" not in to:
        return error(400, "Does not contain a valid address.", "personalizations.0.to.0.email")
    if "@" not in str(sender):
        return error(403, "The from address does not match a verified Sender Identity.", "from")
    if not payload.get("subject"):
        return error(400, "The subject is required.", "subject")
    content = payload.get("content")
    if not isinstance(content, list) or not content:
        return error(400, "Unless a valid template_id is provided, the content parameter is required.", "content")
    for place, part in enumerate(content):
        if not part.get("value"):
            return error(400, "The content value must be a string at least one character in length.", "content.0.value")
        if part.get("type") == "text/plain" and place:
            return error(400, "If present, text/plain and text/html may only be provided once, in order.", "content")
    given = personalization.get("custom_args", {})
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        return error(400, "custom_args values must be strings.", "personalizations.0.custom_args")
    return to, given


def add_sendgrid_routes(app: web.Application, state: SimulatorState, callbacks: Callbacks, key: EventsKey) -> None:
    """Serve SendGrid's API."""
    errors, shown = SendgridErrors(), Shown()

    async def send(request: web.Request) -> web.Response:
        state.seen(KIND)
        if not authenticated(request):
            return error(401, "The provided authorization grant is invalid, expired, or revoked")
        body = await request.read()
        try:
            found = check_mail(json.loads(body))
        except ValueError:
            return error(400, "Bad Request")
        if isinstance(found, web.Response):
            return found
        to, custom_args = found
        their_id = secrets.token_urlsafe(16)
        accept = Accept(KIND, to, custom_args.get("message_id"), body.decode("utf-8", "surrogateescape"), their_id)

        def report() -> None:
            resource = {"msg_id": f"{their_id}.recvd-0", "to_email": to, "status": "processed"}
            shown.add(custom_args.get("message_id", ""), to, resource)
            if (target := callbacks.targets.get(KIND)) is not None:
                callbacks.report(sendgrid_posts(target, key, to, their_id, custom_args), target)

        return await answer(
            state, request, errors, accept, lambda: web.Response(status=202, headers={"X-Message-Id": their_id}), report
        )

    async def messages(request: web.Request) -> web.Response:
        if not authenticated(request):
            return error(401, "authorization required")
        wanted = _QUERY.fullmatch(request.query.get("query", ""))
        if wanted is None:
            return error(400, "the query is not understood here")
        found = shown.of(wanted[1])
        return await show(state, request, KIND, errors, found, lambda found: web.json_response({"messages": found}))

    async def scopes(request: web.Request) -> web.Response:
        if not authenticated(request):
            return error(401, "authorization required")
        return web.json_response({"scopes": _SCOPES})

    app.router.add_post("/v3/mail/send", send)
    app.router.add_get("/v3/messages", messages)
    app.router.add_get("/v3/scopes", scopes)
