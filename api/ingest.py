"""POST /v1/notifications and /bulk: a 202 means that every in-sync replica has the request.

    read, check, find the id of the key (PostgreSQL), publish (Kafka), wait for the acknowledgement, answer

A bulk, and a `to` that is an array, does this for each item: one response gives each item's id or its error.

May import pydantic, runtime, producers. Never: a framework's machinery per request, a decision of the router.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import Field
from starlette.types import Receive, Scope, Send

from api.reference.catalogue import TemplateCatalogue
from api.requests import (
    Authenticator,
    Headers,
    check_form,
    check_model,
    correlation_id_of,
    read_body,
    read_headers,
    traceparent_of,
)
from api.strict_json import body_hash, parse_json
from producers.notification import (
    HTTP_SOURCE,
    Notification,
    Strict,
    check_key,
    json_object,
    request_record,
)
from producers.reference.idempotency import KeyRecord, KeyReservation
from producers.reference.keys import Caller
from runtime import ids
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.errors import PublishError, UnavailableError
from runtime.http.outages import Outages
from runtime.http.problems import FieldError, Problem, new_request_id, unavailable
from runtime.logs import get_logger
from runtime.metrics import ACCEPTED, INGEST_SECONDS, REFUSED
from runtime.records import ProducerRecord
from runtime.status import rfc3339

log = get_logger("ingest")
PATH = "/v1/notifications"
BULK_PATH = f"{PATH}/bulk"
MAX_ITEMS = 1_000
"""Of a bulk, and of an array of recipients."""
ITEMS_A_TURN = 100
"""Of a bulk that are worked on in one turn of the loop: some milliseconds."""
MAX_COPIED_CHARS = 32 << 20
"""What an array of recipients may make of the rest of its body: a small call must not become a large memory."""
MAX_IN_FLIGHT = 4_000
"""Requests that wait for Kafka or PostgreSQL at once; more get 503 with Retry-After, which keeps memory bounded."""
REMEMBER_S = 600
MAX_REMEMBERED = 100_000


class Broker(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    async def send(self, records: Sequence[ProducerRecord]) -> None: ...


class IdempotencyStore(Protocol):
    """The part of IdempotencyKeys that is used."""

    async def reserve(self, reservation: KeyReservation) -> KeyRecord: ...
    async def find(self, tenant: str, key: str) -> KeyRecord | None: ...
    def confirm(self, tenant: str, key: str) -> None: ...


class Accepted(NamedTuple):
    """A notification that the broker has."""

    notification_id: str
    accepted_at: int
    replayed: bool


class RecentAcceptances:
    """What this process accepted in the last ten minutes: readable before it is anywhere else. Bounded."""

    def __init__(self, clock: Clock = system_clock) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, tuple[str, int, str, int]] = OrderedDict()  # a dict gets slow at its front

    def add(self, notification_id: str, tenant: str, accepted_at: int, lane: str) -> None:
        """Remember one."""
        now = self._clock()
        entries = self._entries
        entries[notification_id] = (tenant, accepted_at, lane, now)
        while len(entries) > MAX_REMEMBERED or self._too_old(next(iter(entries.values()))[3], now):
            entries.popitem(last=False)

    @staticmethod
    def _too_old(remembered_at: int, now: int) -> bool:
        return now - remembered_at > REMEMBER_S * 1_000

    def find(self, notification_id: str) -> dict[str, Any] | None:
        """{"id", "tenant", "accepted_at" (ms), "lane"}, None when it was not accepted here lately."""
        entry = self._entries.get(notification_id)
        if entry is None or self._too_old(entry[3], self._clock()):
            return None
        return {"id": notification_id, "tenant": entry[0], "accepted_at": entry[1], "lane": entry[2]}


class Batcher:
    """Gives the broker what one turn of the event loop brought as one batch: one acknowledgement wakes all of it."""

    def __init__(self, broker: Broker, timeout_s: float) -> None:
        self._broker, self._timeout_s = broker, timeout_s
        self._waiting: list[tuple[ProducerRecord, asyncio.Future[None]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    def publish(self, record: ProducerRecord) -> asyncio.Future[None]:
        """Done when the broker has the record; fails with PublishError. Its waiter may go, the record is published."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        answer: asyncio.Future[None] = loop.create_future()
        self._waiting.append((record, answer))
        return answer

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        task = asyncio.ensure_future(self._send(waiting))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, waiting: list[tuple[ProducerRecord, asyncio.Future[None]]]) -> None:
        error = "publishing failed"
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._broker.send([record for record, _ in waiting])
            error = ""
        except (PublishError, TimeoutError) as exc:
            error = str(exc) or "the broker did not answer in time"
        except BaseException as exc:
            error += f" ({type(exc).__name__})"
            raise
        finally:
            for _, answer in waiting:
                if answer.done():
                    continue
                if error:
                    answer.set_exception(PublishError(error))
                else:
                    answer.set_result(None)


class _Flight(NamedTuple):
    """A keyed request that this process is handling."""

    body_hash: bytes
    accepted: asyncio.Future[Accepted]


class Ingest:
    """The ASGI endpoint."""

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        broker: Broker,
        idempotency: IdempotencyStore,
        templates: TemplateCatalogue,
        recent: RecentAcceptances,
        publish_timeout_s: float,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._authenticator, self._idempotency, self._templates = authenticator, idempotency, templates
        # A little more than the producer's own limit, which names the cause.
        self._batcher = Batcher(broker, publish_timeout_s + 1)
        self._recent, self._clock = recent, clock
        self._outages = Outages(monotonic)
        self._in_flight = 0
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._seconds = INGEST_SECONDS.labels("notifications")
        self._accepted = {lane: ACCEPTED.labels(lane, "http") for lane in ("critical", "normal", "bulk")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = new_request_id()
        headers = [(b"x-request-id", request_id.encode())]
        try:
            status, more, body = await self._answer(scope, receive, request_id)
            headers += more
            headers.append((b"content-type", b"application/json"))
        except Problem as problem:
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
        count = len(items) or 1
        self._authenticator.charge(caller, count - 1)
        if self._in_flight and self._in_flight + count > MAX_IN_FLIGHT:
            raise unavailable("overloaded", "too many requests wait for the broker")
        self._in_flight += count
        try:
            if many:
                results = await self._accept_items(caller, items, correlation_id, traceparent_of(headers), request_id)
                return 202, [(b"x-correlation-id", correlation_id.encode())], json.dumps({"results": results}).encode()
            accepted = await self._accept(caller, body, headers, correlation_id)
        finally:
            self._in_flight -= count
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
        digest = body_hash(body) if key is not None else b""
        checked = _CheckedRequest(notification, caller.tenant, key, digest, correlation_id, traceparent_of(headers))
        return await self._accept_checked(checked)

    async def _accept_items(
        self, caller: Caller, items: Sequence[_Item], correlation_id: str, traceparent: str | None, request_id: str
    ) -> list[dict[str, Any]]:
        """A result per item, in order. Raises Problem (503) when every item may only be sent again."""

        async def one(index: int, item: _Item) -> tuple[dict[str, Any], Problem | None]:
            try:
                if item.problem is not None:
                    raise item.problem
                notification = item.notification or check_model(Notification, item.body)
                key = notification.request_id
                digest = body_hash(item.body) if key is not None else b""
                checked = _CheckedRequest(notification, caller.tenant, key, digest, correlation_id, traceparent)
                accepted = await self._accept_checked(checked)
            except Problem as problem:
                found = problem.moved(item.moved)
                return {"index": index, "status": "refused", "error": found.document(request_id)}, found
            except Exception:
                log.exception("ingest failed", request_id=request_id)
                found = Problem(500, "internal_error", "this is our fault; see request_id")
                return {"index": index, "status": "refused", "error": found.document(request_id)}, found
            return {"index": index, "status": "accepted", "id": accepted.notification_id}, None

        # Tasks that start in one turn of the loop publish in one batch; a turn with all of them would delay other callers.
        tasks = []
        for index, item in enumerate(items):
            tasks.append(asyncio.create_task(one(index, item)))
            if index % ITEMS_A_TURN == ITEMS_A_TURN - 1:
                await asyncio.sleep(0)
        answers = await asyncio.gather(*tasks)
        problems = [problem for _, problem in answers if problem is not None and problem.status == 503]
        if len(problems) == len(answers):
            raise unavailable(problems[0].code, problems[0].detail)
        return [result for result, _ in answers]

    async def _accept_checked(self, checked: _CheckedRequest) -> Accepted:
        key, notification = checked.key, checked.notification
        if notification.template is not None:
            try:
                await self._templates.check(checked.tenant, notification.template, notification.data)
            except Problem as problem:
                # A template that changed since does not take back what was accepted under the key.
                if problem.status != 400 or not await self._is_repeated(checked.tenant, key, checked.body_hash):
                    raise
        if key is None:
            accepted_at = self._clock()
            notification_id = ids.notification_id(accepted_at, checked.tenant)
            await self._publish(checked, notification_id, accepted_at)
            return Accepted(notification_id, accepted_at, replayed=False)
        return await self._accept_keyed(checked, key)

    async def _is_repeated(self, tenant: str, key: str | None, digest: bytes) -> bool:
        if key is None:
            return False
        try:
            key_record = await self._idempotency.find(tenant, key)
        except UnavailableError as exc:
            raise unavailable("store_unavailable", str(exc)) from exc
        return key_record is not None and key_record.body_hash == digest

    async def _accept_keyed(self, checked: _CheckedRequest, key: str) -> Accepted:
        """One request per key at a time in this process; others of the same body share its outcome."""
        name = (checked.tenant, key)
        while (flight := self._flights.get(name)) is not None:
            await asyncio.wait([flight.accepted])
            if flight.body_hash == checked.body_hash:
                return flight.accepted.result()._replace(replayed=True)
        flight = _Flight(checked.body_hash, asyncio.get_running_loop().create_future())
        self._flights[name] = flight
        try:
            accepted = await self._reserve_and_publish(checked, key)
        except Problem as problem:
            flight.accepted.set_exception(problem)
            raise
        except BaseException as exc:
            flight.accepted.set_exception(unavailable("overloaded", "the request this one waited for was cut off"))
            raise exc
        else:
            flight.accepted.set_result(accepted)
        finally:
            del self._flights[name]
            flight.accepted.exception()  # marks it as retrieved: other callers may not be waiting for it
        return accepted

    async def _reserve_and_publish(self, checked: _CheckedRequest, key: str) -> Accepted:
        accepted_at = self._clock()
        notification_id = ids.notification_id(accepted_at, checked.tenant, key)
        try:
            key_record = await self._idempotency.reserve(
                KeyReservation(checked.tenant, key, notification_id, checked.body_hash, accepted_at)
            )
        except UnavailableError as exc:
            raise unavailable("store_unavailable", str(exc)) from exc
        self._outages.over("store_unavailable")
        if key_record.body_hash != checked.body_hash:
            raise Problem(
                409,
                "idempotency_conflict",
                "this idempotency key was used with another body",
                errors=[FieldError("", "the body differs from the first one of this key", "idempotency_conflict")],
            )
        if not key_record.confirmed:
            # Also when another process may be publishing it right now: the same id twice is one notification.
            await self._publish(checked, key_record.notification_id, key_record.accepted_at)
            self._idempotency.confirm(checked.tenant, key)
        return Accepted(key_record.notification_id, key_record.accepted_at, replayed=not key_record.won)

    async def _publish(self, checked: _CheckedRequest, notification_id: str, accepted_at: int) -> None:
        request = checked.notification.to_request(
            checked.tenant,
            accepted_at,
            idempotency_key=checked.key,
            correlation_id=checked.correlation_id,
            source=HTTP_SOURCE,
            notification_id=notification_id,
        )
        try:
            record = request_record(request, checked.traceparent)
        except ValueError as exc:
            raise Problem(400, "invalid_request", "the request is too large once encoded") from exc
        try:
            await self._batcher.publish(record)
        except PublishError as exc:
            log.warning(
                "publish not acknowledged",
                notification_id=notification_id,
                correlation_id=checked.correlation_id,
                error=str(exc),
            )
            raise unavailable("kafka_unavailable", "Kafka did not confirm the notification: send it again") from exc
        self._outages.over("kafka_unavailable")
        lane = checked.notification.priority
        self._accepted[lane].inc()
        self._recent.add(notification_id, checked.tenant, accepted_at, lane)


class _CheckedRequest(NamedTuple):
    """A checked request."""

    notification: Notification
    tenant: str
    key: str | None
    body_hash: bytes
    correlation_id: str
    traceparent: str | None


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
    problem: Problem | None = None

    def moved(self, pointer: str) -> str:
        """A pointer into the item as one into the call's body."""
        if self.before.startswith("/to/"):
            return self.before + pointer.removeprefix("/to") if pointer.startswith("/to") else pointer
        return self.before + pointer


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
        except Problem as problem:
            shared = [
                error for error in problem.errors if error.pointer != "/to" and not error.pointer.startswith("/to/")
            ]
            if shared:
                raise Problem(400, problem.code, shared[0].detail, errors=shared) from problem
            items.append(_Item(one, where, problem=problem))
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
