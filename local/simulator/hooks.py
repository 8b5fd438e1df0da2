"""Receivers of webhooks: Standard Webhooks, Slack's incoming webhooks, the webhooks of Teams' Workflows. JSON in, a word or nothing out.

    POST /hooks/{webhook,slack,teams}/<any path>     the URL is the recipient

Slack and Teams know no id of ours: it is read from a header of our own, which they ignore.
May import the simulator's state and aiohttp. Never: a decision on scripted faults (faults.py), a signature's secret.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from local.simulator import HOOK_ACCOUNTS
from local.simulator.ground_truth import Accept
from local.simulator.state import MESSAGE_ID_HEADER, SimulatorState, VendorErrors, answer

KINDS = WEBHOOK, SLACK, TEAMS = tuple(HOOK_ACCOUNTS)
_SIGNATURES = re.compile(r"v1,[A-Za-z0-9+/]{43}=(?: v1,[A-Za-z0-9+/]{43}=)*")
_TOLERANCE_S = 300
_TEAMS_BYTES = 28 * 1024


def says(status: int, text: str = "", retry_after: str | None = None) -> web.Response:
    """A response in plain text."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.Response(status=status, text=text, headers=headers)


def teams_error(status: int, code: str, retry_after: str | None = None) -> web.Response:
    """An error as a workflow writes it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.json_response({"error": {"code": code}}, status=status, headers=headers)


class WebhookErrors:
    """Scripted faults of a receiver."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return says(429, "slow down", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return says(500)

    def rejected(self, recipient: str) -> web.Response:
        return says(410)


class SlackErrors:
    """Scripted faults in Slack's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return says(429, "rate_limited", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return says(500, "rollup_error")

    def rejected(self, recipient: str) -> web.Response:
        return says(404, "no_service")


class TeamsErrors:
    """Scripted faults of a Workflows webhook."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return teams_error(429, "TooManyRequests", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return teams_error(500, "InternalServerError")

    def rejected(self, recipient: str) -> web.Response:
        return teams_error(404, "WorkflowNotFound")


def refused_webhook(headers: Mapping[str, str], body: bytes, posted: Any) -> web.Response | None:
    """Why a webhook is not one of the specification, None when it is."""
    sent_at = headers.get("webhook-timestamp", "")
    if not headers.get("webhook-id") or not _SIGNATURES.fullmatch(headers.get("webhook-signature", "")):
        return says(401, "webhook-id and webhook-signature are missing or malformed")
    if not sent_at.isdigit() or abs(int(sent_at) - time.time()) > _TOLERANCE_S:
        return says(401, "webhook-timestamp is not the time")
    return None if isinstance(posted, dict) else says(400, "the body is a JSON object")


def refused_slack(headers: Mapping[str, str], body: bytes, posted: Any) -> web.Response | None:
    """Slack's refusal of a payload, None when it takes it."""
    if not isinstance(posted, dict):
        return says(400, "invalid_payload")
    if not isinstance(posted.get("blocks", []), list):
        return says(400, "invalid_blocks_format")
    return None if any(posted.get(name) for name in ("text", "blocks", "attachments")) else says(400, "no_text")


def refused_teams(headers: Mapping[str, str], body: bytes, posted: Any) -> web.Response | None:
    """A refusal of what is no card, or of too much, None when it is taken."""
    try:
        cards = [each["content"]["type"] for each in posted["attachments"]]
    except (TypeError, KeyError):
        cards = []
    if cards != ["AdaptiveCard"] or posted["type"] != "message":
        return teams_error(400, "TriggerInputSchemaMismatch")
    return teams_error(413, "RequestEntityTooLarge") if len(body) > _TEAMS_BYTES else None


Refused = Callable[[Mapping[str, str], bytes, Any], web.Response | None]
_RECEIVERS: Mapping[str, tuple[Refused, VendorErrors, str, tuple[int, str]]] = {
    WEBHOOK: (refused_webhook, WebhookErrors(), "webhook-id", (204, "")),
    SLACK: (refused_slack, SlackErrors(), MESSAGE_ID_HEADER, (200, "ok")),
    TEAMS: (refused_teams, TeamsErrors(), MESSAGE_ID_HEADER, (202, "")),
}
"""By kind: its refusals, its errors, the header with our message id, and its success."""


def add_hook_routes(app: web.Application, state: SimulatorState) -> None:
    """Serve the receivers."""

    async def receive(request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        refused, errors, id_header, success = _RECEIVERS[kind]
        state.seen(kind)
        body = await request.read()
        try:
            posted = json.loads(body)
        except ValueError:
            posted = None
        if (refusal := refused(request.headers, body, posted)) is not None:
            return refusal
        text = body.decode("utf-8", "surrogateescape")
        accept = Accept(kind, str(request.url), request.headers.get(id_header), text)
        return await answer(state, request, errors, accept, lambda: says(*success))

    app.router.add_post(f"/hooks/{{kind:{'|'.join(KINDS)}}}/{{path:.+}}", receive)
