"""Twilio's Messages and Account resources (api version 2010-04-01): form in, JSON out, Twilio's error codes, and later its callbacks.

Twilio's documented test recipients are refused as documented: +15005550001 21211, ...2 21612, ...3 21408, ...4 21610,
...9 21614. The resource has no field for our message id: it is read from `message_id` in the StatusCallback's query.

A message with a StatusCallback gets delivery reports (reports.py), whatever response a scripted fault gave to its request.

    PUT  /twilio/auth_tokens   ["..."], the only ones that are taken from now on; [] for any, as at the start

May import the simulator's state, callbacks and aiohttp. Never: a decision on scripted faults (faults.py), a twilio SDK.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import parse_qs, parse_qsl, urlsplit

from aiohttp import web

from local.simulator.callbacks import Callbacks
from local.simulator.ground_truth import Accept
from local.simulator.reports import Accepted, twilio_posts
from local.simulator.state import Shown, SimulatorState, answer, show

KIND = "twilio"
_E164 = re.compile(r"\+[1-9]\d{6,14}\Z")
_MAX_BODY_CHARS = 1600
_TEST_RECIPIENTS = {
    "+15005550001": (21211, "Invalid 'To' Phone Number: +15005550001"),
    "+15005550002": (21612, "Message cannot be sent with the current combination of 'To' and/or 'From' parameters"),
    "+15005550003": (
        21408,
        "Permission to send an SMS or MMS has not been enabled for the region indicated by the 'To' number",
    ),
    "+15005550004": (21610, "Attempt to send to unsubscribed recipient"),
    "+15005550009": (21614, "'To' number is not a valid mobile number"),
}


def error(status: int, code: int, message: str, retry_after: str | None = None) -> web.Response:
    """An error as Twilio writes it."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    body = {
        "code": code,
        "message": message,
        "more_info": f"https://www.twilio.com/docs/errors/{code}",
        "status": status,
    }
    return web.json_response(body, status=status, headers=headers)


class TwilioErrors:
    """Scripted faults as Twilio's error responses."""

    def throttled(self, retry_after: str | None) -> web.Response:
        return error(429, 20429, "Too Many Requests", retry_after)

    def failed(self, retry_after: str | None) -> web.Response:
        return error(500, 20500, "An internal server error has occurred", retry_after)

    def rejected(self, recipient: str) -> web.Response:
        return error(400, 21211, f"Invalid 'To' Phone Number: {recipient}")


def secret_of(header: str, account_sid: str) -> str | None:
    """The secret of basic authentication by the account of the path (or an API key), None when it is not that."""
    scheme, _, encoded = header.partition(" ")
    try:
        user, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    known = scheme.lower() == "basic" and (user == account_sid or user.startswith("SK"))
    return secret if known and secret else None


def refusal(form: dict[str, str]) -> web.Response | None:
    """Why Twilio would not take this message, None when it would."""
    to = form.get("To", "")
    if not to:
        return error(400, 21604, "A 'To' phone number is required.")
    if not form.get("From") and not form.get("MessagingServiceSid"):
        return error(400, 21603, "A 'From' phone number is required.")
    if not form.get("Body") and not form.get("MediaUrl") and not form.get("ContentSid"):
        return error(400, 21602, "Message body is required.")
    if len(form.get("Body", "")) > _MAX_BODY_CHARS:
        return error(400, 21617, "The concatenated message body exceeds the 1600 character limit")
    if to in _TEST_RECIPIENTS:
        code, message = _TEST_RECIPIENTS[to]
        return error(400, code, message)
    if not _E164.match(to):
        return error(400, 21211, f"Invalid 'To' Phone Number: {to}")
    return None


def our_message_id(form: dict[str, str], query: dict[str, str]) -> str | None:
    """Our id: the StatusCallback's `message_id`, or an explicit field that Twilio would ignore."""
    callback = parse_qs(urlsplit(form.get("StatusCallback", "")).query)
    found = callback.get("message_id") or callback.get("heliograph_message_id")
    return found[0] if found else form.get("heliograph_message_id") or query.get("heliograph_message_id")


def resource(account_sid: str, sid: str, form: dict[str, str], now: datetime) -> dict[str, object]:
    """The Message resource of a new message."""
    date = format_datetime(now)
    return {
        "account_sid": account_sid,
        "api_version": "2010-04-01",
        "body": form.get("Body", ""),
        "date_created": date,
        "date_sent": None,
        "date_updated": date,
        "direction": "outbound-api",
        "error_code": None,
        "error_message": None,
        "from": form.get("From"),
        "messaging_service_sid": form.get("MessagingServiceSid"),
        "num_media": "0",
        "num_segments": "1",
        "price": None,
        "price_unit": "USD",
        "sid": sid,
        "status": "queued",
        "subresource_uris": {"media": f"/2010-04-01/Accounts/{account_sid}/Messages/{sid}/Media.json"},
        "to": form.get("To"),
        "uri": f"/2010-04-01/Accounts/{account_sid}/Messages/{sid}.json",
    }


def account(account_sid: str, now: datetime) -> dict[str, object]:
    """The Account resource, without the token that Twilio's has."""
    date = format_datetime(now)
    return {
        "sid": account_sid,
        "owner_account_sid": account_sid,
        "friendly_name": "Simulator",
        "status": "active",
        "type": "Full",
        "date_created": date,
        "date_updated": date,
        "uri": f"/2010-04-01/Accounts/{account_sid}.json",
    }


def add_twilio_routes(app: web.Application, state: SimulatorState, callbacks: Callbacks) -> None:
    """Serve Twilio's API."""
    errors, shown = TwilioErrors(), Shown()
    taken: set[str] = set()

    def authenticated(request: web.Request) -> str | None:
        secret = secret_of(request.headers.get("Authorization", ""), request.match_info["account_sid"])
        return None if taken and secret not in taken else secret

    async def set_auth_tokens(request: web.Request) -> web.Response:
        try:
            tokens = json.loads(await request.read())
        except ValueError:
            tokens = None
        if not isinstance(tokens, list) or not all(isinstance(token, str) and token for token in tokens):
            return web.json_response({"error": "the body is a JSON array of tokens"}, status=400)
        taken.clear()
        taken.update(tokens)
        return web.json_response({"taken": len(taken)})

    async def fetch_account(request: web.Request) -> web.Response:
        if authenticated(request) is None:
            return error(401, 20003, "Authenticate")
        return web.json_response(account(request.match_info["account_sid"], datetime.now(UTC)))

    async def create_message(request: web.Request) -> web.Response:
        state.seen(KIND)
        account_sid = request.match_info["account_sid"]
        secret = authenticated(request)
        if secret is None:
            return error(401, 20003, "Authenticate")
        text = (await request.read()).decode("utf-8", "replace")
        form = dict(parse_qsl(text, keep_blank_values=True))
        refused = refusal(form)
        if refused is not None:
            return refused
        sid = "SM" + secrets.token_hex(16)
        accept = Accept(KIND, form["To"], our_message_id(form, dict(request.query)), form.get("Body", ""), sid)
        made = resource(account_sid, sid, form, datetime.now(UTC))
        url = form.get("StatusCallback")

        def report() -> None:
            shown.add(form["To"], form["To"], made)
            if url:
                callbacks.report(
                    twilio_posts(Accepted(account_sid, secret, sid, form["To"], form.get("From", ""), url))
                )

        return await answer(state, request, errors, accept, lambda: web.json_response(made, status=201), report)

    async def list_messages(request: web.Request) -> web.Response:
        if authenticated(request) is None:
            return error(401, 20003, "Authenticate")
        found = shown.of(request.query.get("To", ""))
        return await show(state, request, KIND, errors, found, lambda found: web.json_response({"messages": found}))

    app.router.add_put("/twilio/auth_tokens", set_auth_tokens)
    app.router.add_get("/2010-04-01/Accounts/{account_sid}.json", fetch_account)
    app.router.add_get("/2010-04-01/Accounts/{account_sid}/Messages.json", list_messages)
    app.router.add_post("/2010-04-01/Accounts/{account_sid}/Messages.json", create_message)
