"""Vonage's SMS API: form in, JSON out with a status for each part, always with HTTP 200; and the balance.

Our message id is read from client-ref, which receipts repeat (reports.py).
May import the simulator's state, runtime's callbacks and aiohttp. Never: a decision on scripted faults (faults.py), a Vonage SDK.
"""

from __future__ import annotations

import re
import secrets
from urllib.parse import parse_qsl

from aiohttp import BasicAuth, web

from local.simulator.callbacks import Callbacks
from local.simulator.ground_truth import Accept
from local.simulator.reports import vonage_posts
from local.simulator.state import SimulatorState, answer, basic_secret
from runtime.callbacks import subject_of_token

KIND = "vonage"
_NUMBER = re.compile(r"[1-9]\d{6,14}", re.ASCII)


def error(status: str, text: str) -> web.Response:
    """A refusal as Vonage writes it: HTTP 200 and one part."""
    return web.json_response({"message-count": "1", "messages": [{"status": status, "error-text": text}]})


class VonageErrors:
    """Scripted faults in Vonage's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        if retry_after is None:
            return error("1", "Throughput Rate Exceeded - please wait [ 33 ] and retry")
        return web.json_response({"title": "Too Many Requests"}, status=429, headers={"Retry-After": retry_after})

    def failed(self, retry_after: str | None) -> web.Response:
        return error("5", "Internal Error")

    def rejected(self, recipient: str) -> web.Response:
        return error("7", "Number barred")


def add_vonage_routes(app: web.Application, state: SimulatorState, callbacks: Callbacks) -> None:
    """Serve Vonage's APIs."""
    errors = VonageErrors()

    async def send(request: web.Request) -> web.Response:
        state.seen(KIND)
        authorization = BasicAuth.decode(request.headers["Authorization"]) if basic_secret(request) else None
        if authorization is None:
            return error("4", "Bad Credentials")
        text = (await request.read()).decode("utf-8", "replace")
        form = dict(parse_qsl(text, keep_blank_values=True))
        missing = next((name for name in ("from", "to", "text") if not form.get(name)), None)
        if missing is not None:
            return error("2", f"Missing {missing} param")
        if not _NUMBER.fullmatch(form["to"]):
            return error("3", "Invalid to param")
        if len(form.get("client-ref", "")) > 100:
            return error("3", "Invalid client-ref param")
        their_id = secrets.token_hex(8).upper()
        reference = form.get("client-ref", "")
        ours = subject_of_token(reference).message_id or reference or None
        to = f"+{form['to']}"
        accept = Accept(KIND, to, ours, form["text"], their_id)
        part = {"to": form["to"], "message-id": their_id, "status": "0", "remaining-balance": "9.9", "network": "26201"}
        made = {"message-count": "1", "messages": [part]}

        def report() -> None:
            if (target := callbacks.targets.get(KIND)) is not None:
                posts = vonage_posts(target, authorization.login, to, form["from"], their_id, reference)
                callbacks.report(posts, target)

        return await answer(state, request, errors, accept, lambda: web.json_response(made), report)

    async def balance(request: web.Request) -> web.Response:
        if basic_secret(request) is None:
            return web.json_response({"error-code": "401", "error-code-label": "authentication failed"}, status=401)
        return web.json_response({"value": 9.9, "autoReload": False})

    app.router.add_post("/sms/json", send)
    app.router.add_get("/account/get-balance", balance)
