"""Mailgun's messages.mime: a form with a mail in it, JSON out, and its errors.

Our message id is read from the variable `v:message_id`; events repeat the variables (reports.py).
May import the simulator's state and aiohttp. Never: a decision on scripted faults (faults.py), a Mailgun SDK.
"""

from __future__ import annotations

import secrets
from email.parser import BytesParser
from email.policy import HTTP

from aiohttp import web

from local.simulator.callbacks import Callbacks
from local.simulator.ground_truth import Accept
from local.simulator.reports import mailgun_posts
from local.simulator.state import Shown, SimulatorState, answer, basic_secret, show

KIND = "mailgun"


def error(status: int, message: str, retry_after: str | None = None) -> web.Response:
    """An error as Mailgun writes it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return web.json_response({"message": message}, status=status, headers=headers)


class MailgunErrors:
    """Scripted faults in Mailgun's words."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return error(429, "Too Many Requests", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return error(500, "Internal Server Error")

    def rejected(self, recipient: str) -> web.Response:
        return error(400, f"'to' parameter is not a valid address. please check documentation: {recipient}")


def form_of(content_type: str, body: bytes) -> dict[str, bytes]:
    """Fields of multipart/form-data, {} where it is none."""
    made = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    fields = {}
    for part in made.iter_parts() if made.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content
    return fields


def add_mailgun_routes(app: web.Application, state: SimulatorState, callbacks: Callbacks) -> None:
    """Serve Mailgun's API."""
    errors, shown = MailgunErrors(), Shown()

    async def send(request: web.Request) -> web.Response:
        state.seen(KIND)
        if basic_secret(request, "api") is None:
            return error(401, "Forbidden")
        form = form_of(request.headers.get("Content-Type", ""), await request.read())
        if not form.get("to"):
            return error(400, "to parameter is missing")
        if not form.get("message"):
            return error(400, "message parameter is missing")
        to = form["to"].decode("utf-8", "replace")
        if "@" not in to or "," in to:
            return errors.rejected(to)
        variables = {
            name.removeprefix("v:"): value.decode("utf-8", "replace")
            for name, value in form.items()
            if name.startswith("v:")
        }
        their_id = f"<{secrets.token_hex(12)}@{request.match_info['domain']}>"
        mail = form["message"].decode("utf-8", "surrogateescape")
        # A mail keeps its Message-ID, by which events are asked for.
        own_id = str(BytesParser(policy=HTTP).parsebytes(form["message"], headersonly=True)["Message-ID"] or "")
        accept = Accept(KIND, to, variables.get("message_id"), mail, their_id)
        made = {"id": their_id, "message": "Queued. Thank you."}

        def report() -> None:
            headers = {"message-id": own_id.strip("<>"), "to": to}
            event = {"event": "accepted", "recipient": to, "user-variables": variables, "message": {"headers": headers}}
            shown.add(headers["message-id"], to, event)
            if (target := callbacks.targets.get(KIND)) is not None:
                callbacks.report(mailgun_posts(target, to, their_id, variables), target)

        return await answer(state, request, errors, accept, lambda: web.json_response(made), report)

    async def events(request: web.Request) -> web.Response:
        if basic_secret(request, "api") is None:
            return error(401, "Forbidden")
        found = shown.of(request.query.get("message-id", ""))
        return await show(
            state, request, KIND, errors, found, lambda items: web.json_response({"items": items, "paging": {}})
        )

    app.router.add_post("/v3/{domain}/messages.mime", send)
    app.router.add_get("/v3/{domain}/events", events)
