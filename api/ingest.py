"""POST /v1/notifications and /bulk: a 202 means that every in-sync replica has the request.

    read, check, find the id of the key (PostgreSQL), publish (Kafka), wait for the acknowledgement, answer

A bulk, and a `to` that is an array, does this for each item: one response gives each item's id or its error.

May import pydantic, runtime, producers. Never: a framework's machinery per request, a decision of the router.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from starlette.types import Receive, Scope, Send

from api.requests import (
    Authenticator,
    Headers,
    check_form,
    correlation_id_of,
    read_body,
    read_headers,
    traceparent_of,
)
from api.strict_json import parse_json
from producers.acceptance import ITEMS_A_TURN, Acceptance, Accepted, CheckedRequest, checked_request
from producers.checking import check_model
from producers.notification import Notification, Strict, check_key, json_object
from producers.reference.keys import Caller
from runtime.errors import FieldError, RefusedError
from runtime.http.outages import Outages
from runtime.http.problems import Problem, new_request_id, problem_of
from runtime.logs import get_logger
from runtime.metrics import INGEST_SECONDS, REFUSED
from runtime.status import rfc3339

log = get_logger("ingest")
PATH = "/v1/notifications"
BULK_PATH = f"{PATH}/bulk"
MAX_ITEMS = 1_000
"""Of a bulk, and of an array of recipients."""
MAX_COPIED_CHARS = 32 << 20
"""What an array of recipients may make of the rest of its body: a small call must not become a large memory."""


class Ingest:
    """The ASGI endpoint."""

    def __init__(self, authenticator: Authenticator, acceptance: Acceptance, outages: Outages) -> None:
        self._authenticator, self._acceptance, self._outages = authenticator, acceptance, outages
        self._seconds = INGEST_SECONDS.labels("notifications")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = new_request_id()
        headers = [(b"x-request-id", request_id.encode())]
        try:
            status, more, body = await self._answer(scope, receive, request_id)
            headers += more
            headers.append((b"content-type", b"application/json"))
        except (Problem, RefusedError) as exc:
            problem = exc if isinstance(exc, Problem) else problem_of(exc)
            REFUSED.labels(problem.code).inc()
            status, body = problem.status, problem.body(request_id)
            if problem.status == 503:
                problem.headers["Retry-After"] = str(self._outages.retry_after_s(problem.code))
            headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
            headers.append((b"content-type", b"application/problem+json"))
        except Exception:
            log.exception("ingest failed", request_id=request_id)
            REFUSED.labels("internal_error").inc()
            status, body = 500, Problem(500, "internal_error", "this is our fault; see request_id").body(request_id)
            headers.append((b"content-type", b"application/problem+json"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        self._seconds.observe(time.perf_counter() - started)

    async def _answer(
        self, scope: Scope, receive: Receive, request_id: str
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        headers = read_headers(scope)
        caller = await self._authenticator.caller(headers.get(b"authorization"))
        check_form(headers)
        correlation_id = correlation_id_of(headers) or request_id
        body = parse_json(await read_body(receive))
        many = scope.get("path") == BULK_PATH or (isinstance(body, dict) and isinstance(body.get("to"), list))
        items = await _items(scope, headers, body) if many else []
        self._authenticator.charge(caller, len(items) - 1)
        if many:
            results = await self._accept_items(caller, items, correlation_id, traceparent_of(headers), request_id)
            return 202, [(b"x-correlation-id", correlation_id.encode())], json.dumps({"results": results}).encode()
        accepted = await self._accept(caller, body, headers, correlation_id)
        where = f"{PATH}/{accepted.notification_id}"
        # Written as json.dumps would: every part of it is ours and needs no escape.
        answer = (
            f'{{"id": "{accepted.notification_id}", "status": "accepted", "accepted_at": "{rfc3339(accepted.accepted_at)}", '
            f'"links": {{"self": "{where}", "events": "{where}/events"}}}}'
        )
        more = [(b"location", where.encode()), (b"x-correlation-id", correlation_id.encode())]
        if accepted.replayed:
            more.append((b"idempotent-replayed", b"true"))
        return 202, more, answer.encode()

    async def _accept(self, caller: Caller, body: Any, headers: Headers, correlation_id: str) -> Accepted:
        notification = check_model(Notification, body)
        key = _idempotency_key(headers, notification)
        traceparent = traceparent_of(headers)
        return await self._acceptance.accept(
            checked_request(notification, body, caller.tenant, key, correlation_id, traceparent)
        )

    async def _accept_items(
        self, caller: Caller, items: Sequence[_Item], correlation_id: str, traceparent: str | None, request_id: str
    ) -> list[dict[str, Any]]:
        """A result per item, in order. Raises RefusedError when every item may only be sent again."""
        checks: list[Callable[[], CheckedRequest]] = [
            partial(item.checked, caller.tenant, correlation_id, traceparent) for item in items
        ]
        found = await self._acceptance.accept_many(checks, request_id)
        return [_result(index, items[index], one, request_id) for index, one in enumerate(found)]


class Bulk(Strict):
    """Many notifications in one call, each accepted or refused for itself."""

    # Any: an item that is not an object gets its own error; the call itself stays valid.
    notifications: Annotated[list[Any], Field(min_length=1, max_length=MAX_ITEMS)]


class _Item(NamedTuple):
    """One notification of several: its body, its position in the call's body, and what is already known about it."""

    body: Any
    before: str
    """What goes before its pointers; for a recipient of an array: /to becomes this."""
    notification: Notification | None = None
    refused: RefusedError | None = None

    def checked(self, tenant: str, correlation_id: str, traceparent: str | None) -> CheckedRequest:
        """Raises RefusedError."""
        if self.refused is not None:
            raise self.refused
        notification = self.notification or check_model(Notification, self.body)
        return checked_request(notification, self.body, tenant, notification.request_id, correlation_id, traceparent)

    def moved(self, pointer: str) -> str:
        """A pointer into the item as one into the call's body."""
        if self.before.startswith("/to/"):
            return self.before + pointer.removeprefix("/to") if pointer.startswith("/to") else pointer
        return self.before + pointer


def _result(index: int, item: _Item, found: Accepted | RefusedError, request_id: str) -> dict[str, Any]:
    if isinstance(found, Accepted):
        return {"index": index, "status": "accepted", "id": found.notification_id}
    problem = problem_of(found)
    # An error of ours is none of the item's fields.
    moved = problem.moved(item.moved) if problem.status != 500 else problem
    return {"index": index, "status": "refused", "error": moved.document(request_id)}


async def _items(scope: Scope, headers: Headers, body: Any) -> list[_Item]:
    """The notifications of a bulk or of an array of recipients. Raises Problem (400)."""
    if b"idempotency-key" in headers:
        raise Problem(400, "invalid_header", "Idempotency-Key is for one notification; give each item a request_id")
    if scope.get("path") == BULK_PATH:
        bulk = check_model(Bulk, body)
        return [_Item(item, f"/notifications/{index}") for index, item in enumerate(bulk.notifications)]
    return await _recipients(body)


async def _recipients(body: dict[str, Any]) -> list[_Item]:
    """One item per recipient. What they share is right for all of them or wrong for the call."""
    recipients = body["to"]
    if not 1 <= len(recipients) <= MAX_ITEMS:
        why = f"give 1 to {MAX_ITEMS} recipients"
        raise Problem(400, "invalid_request", why, errors=[FieldError("/to", why, "invalid_value")])
    if body.get("request_id") is not None:
        why = "one key cannot be used for several notifications: use /v1/notifications/bulk, with a request_id per item"
        raise Problem(400, "invalid_request", why, errors=[FieldError("/request_id", why, "invalid_value")])
    shared_chars = len(json_object({name: value for name, value in body.items() if name != "to"}))
    if shared_chars * len(recipients) > MAX_COPIED_CHARS:
        why = f"a copy of it for every recipient is more than {MAX_COPIED_CHARS} characters: send to fewer at once"
        raise Problem(413, "body_too_large", why, errors=[FieldError("/to", why, "invalid_value")])
    items = []
    for index, recipient in enumerate(recipients):
        if index % ITEMS_A_TURN == ITEMS_A_TURN - 1:
            await asyncio.sleep(0)
        one, where = {**body, "to": recipient}, f"/to/{index}"
        try:
            items.append(_Item(one, where, notification=check_model(Notification, one)))
        except RefusedError as refused:
            shared = [
                error for error in refused.errors if error.pointer != "/to" and not error.pointer.startswith("/to/")
            ]
            if shared:
                raise Problem(400, refused.code, shared[0].detail, errors=shared) from refused
            items.append(_Item(one, where, refused=refused))
    return items


def _idempotency_key(headers: Headers, notification: Notification) -> str | None:
    """Raises Problem when header and body disagree or the header is not a valid key."""
    raw = headers.get(b"idempotency-key")
    if raw is None:
        return notification.request_id
    try:
        key = check_key(raw.decode("latin-1").strip(" \t"))  # RFC 9110, 5.5: surrounding blanks are not part of a value
    except ValueError as exc:
        raise Problem(400, "invalid_header", f"Idempotency-Key: {exc}") from exc
    if notification.request_id is not None and notification.request_id != key:
        why = "Idempotency-Key and request_id differ: give one of them"
        raise Problem(400, "invalid_request", why, errors=[FieldError("/request_id", why, "invalid_value")])
    return key
