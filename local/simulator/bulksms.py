"""BulkSMS's messages and profile: JSON in and out, and its errors.

The API has no field for our whole message id: it is read from a header of our own, which the vendor ignores.
May import the simulator's state and aiohttp. Never: a decision on scripted faults (faults.py).
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from aiohttp import web

from local.simulator.callbacks import Callbacks
from local.simulator.ground_truth import Accept
from local.simulator.reports import bulksms_posts
from local.simulator.state import MESSAGE_ID_HEADER, Shown, SimulatorState, answer, basic_secret, show

KIND = "bulksms"
_FIELDS = frozenset({"to", "body", "from", "encoding", "longMessageMaxParts", "deliveryReports", "userSuppliedId"})


def error(status: int, title: str, detail: str, retry_after: str | None = None) -> web.Response:
    """An error as BulkSMS writes it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    kind = f"https://developer.bulksms.com/json/v1/errors#{title.lower().replace(' ', '-')}"
    body = {"type": kind, "title": title, "status": status, "detail": detail}
    return web.json_response(body, status=status, headers=headers)


def created(entry: dict[str, Any], their_id: str, kind: str, subtype: str | None = None) -> list[dict[str, Any]]:
    """The messages of a submission, which is one."""
    status = {"id": f"{kind}.{subtype or 'null'}", "type": kind, **({"subtype": subtype} if subtype else {})}
    return [
        {
            "id": their_id,
            "type": "SENT",
            "to": entry["to"],
            "body": entry["body"],
            "encoding": entry.get("encoding", "TEXT"),
            "status": status,
            "submission": {"id": f"2-{their_id}"},
            "userSuppliedId": entry.get("userSuppliedId"),
        }
    ]


class BulksmsErrors:
    """Scripted faults in BulkSMS's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return error(429, "Too Many Requests", "slow down", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return error(500, "Internal Server Error", "")

    def rejected(self, recipient: str) -> web.Response:
        return web.json_response(created({"to": recipient, "body": ""}, "0", "FAILED", "BLOCKED"), status=201)


def add_bulksms_routes(app: web.Application, state: SimulatorState, callbacks: Callbacks) -> None:
    """Serve BulkSMS's API."""
    errors, shown = BulksmsErrors(), Shown()

    async def send(request: web.Request) -> web.Response:
        state.seen(KIND)
        if basic_secret(request) is None:
            return error(401, "Unauthorized", "")
        try:
            (entry,) = json.loads(await request.read())
            unknown = entry.keys() - _FIELDS
            (to,) = (each["address"] for each in entry["to"])
        except (ValueError, TypeError, AttributeError, KeyError):
            return error(400, "Bad Request", "the body is an array of one message to one address here")
        if unknown or not isinstance(to, str) or not isinstance(entry.get("body"), str):
            return error(400, "Bad Request", "an address and the body are text")
        if len(entry.get("userSuppliedId", "")) > 20:
            return error(400, "Bad Request", "userSuppliedId is too long")
        their_id = str(secrets.randbelow(10**15))
        ours = request.headers.get(MESSAGE_ID_HEADER)
        accept = Accept(KIND, to, ours, entry["body"], their_id)
        made = created({**entry, "to": to}, their_id, "ACCEPTED")

        def report() -> None:
            shown.add(entry.get("userSuppliedId", ""), to, made[0])
            if (target := callbacks.targets.get(KIND)) is not None:
                callbacks.report(bulksms_posts(target, to, their_id, entry.get("userSuppliedId", "")), target)

        return await answer(state, request, errors, accept, lambda: web.json_response(made, status=201), report)

    async def listed(request: web.Request) -> web.Response:
        if basic_secret(request) is None:
            return error(401, "Unauthorized", "")
        name, _, wanted = request.query.get("filter", "").partition("=")
        if name != "userSuppliedId":
            return error(400, "Bad Request", "the filter is not understood here")
        return await show(state, request, KIND, errors, shown.of(wanted), web.json_response)

    async def profile(request: web.Request) -> web.Response:
        if basic_secret(request) is None:
            return error(401, "Unauthorized", "")
        return web.json_response({"id": "1", "username": "simulator", "credits": {"balance": 100.0}})

    app.router.add_post("/v1/messages", send)
    app.router.add_get("/v1/messages", listed)
    app.router.add_get("/v1/profile", profile)
