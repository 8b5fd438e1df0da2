"""Accepting a notification, for every face: check its template, find the id of its key (PostgreSQL), publish (Kafka), wait.

Who gets an Accepted may rely on it: every in-sync replica has the request. Who gets a RefusedError of kind BUSY may send the same
again; with a key it stays one notification.
May import runtime and producers. Never: HTTP, a decision of the router.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from producers.batcher import Batcher, Broker
from producers.notification import HTTP_SOURCE, Notification, request_record
from producers.reference.catalogue import TemplateCatalogue
from producers.reference.idempotency import KeyRecord, KeyReservation
from runtime import ids
from runtime.clock import Clock, system_clock
from runtime.errors import FieldError, PublishError, Refusal, RefusedError, UnavailableError
from runtime.logs import get_logger
from runtime.metrics import ACCEPTED

log = get_logger("ingest")
ITEMS_A_TURN = 100
"""Of a bulk that are worked on in one turn of the loop: some milliseconds."""
MAX_IN_FLIGHT = 4_000
"""Requests that wait for Kafka or PostgreSQL at once; more are refused, which keeps memory bounded."""
REMEMBER_S = 600
MAX_REMEMBERED = 100_000


def _numbers(value: Any) -> Any:
    """1.0 and 1 are the same JSON value."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return value


_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_MAY_BE_WHOLE = re.compile(r"\d(\.0[,\]}]|e\+)").search
"""A number with a fraction that is none, as 2.0 or 1e+16; a text may look like it, which costs time only."""


def body_hash(body: Mapping[str, Any]) -> bytes:
    """SHA-256 of a body as a JSON value: key order, white space and `request_id` do not count."""
    value = {key: item for key, item in body.items() if key != "request_id"} if "request_id" in body else body
    text = _SORTED.encode(value)
    if _MAY_BE_WHOLE(text):
        text = _SORTED.encode(_numbers(value))
    return hashlib.sha256(text.encode()).digest()


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


class _Flight(NamedTuple):
    """A keyed request that this process is handling."""

    body_hash: bytes
    accepted: asyncio.Future[Accepted]


class CheckedRequest(NamedTuple):
    """A request that fits its model, and for whom it is."""

    notification: Notification
    tenant: str
    key: str | None
    body_hash: bytes
    correlation_id: str
    traceparent: str | None


def checked_request(
    notification: Notification,
    body: Mapping[str, Any],
    tenant: str,
    key: str | None,
    correlation_id: str,
    traceparent: str | None,
) -> CheckedRequest:
    """The model of `body`; the body is what a repetition under the key is compared by."""
    digest = body_hash(body) if key is not None else b""
    return CheckedRequest(notification, tenant, key, digest, correlation_id, traceparent)


class Acceptance:
    """Accepts notifications. `recovered` is called with the code of a refusal that would not be said now."""

    def __init__(
        self,
        *,
        broker: Broker,
        idempotency: IdempotencyStore,
        templates: TemplateCatalogue,
        recent: RecentAcceptances,
        publish_timeout_s: float,
        recovered: Callable[[str], None] = lambda _: None,
        clock: Clock = system_clock,
    ) -> None:
        self._idempotency, self._templates = idempotency, templates
        # A little more than the producer's own limit, which names the cause.
        self._batcher = Batcher(broker, publish_timeout_s + 1)
        self._recent, self._clock, self._recovered = recent, clock, recovered
        self._in_flight = 0
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._accepted = {lane: ACCEPTED.labels(lane, "http") for lane in ("critical", "normal", "bulk")}

    async def accept(self, checked: CheckedRequest) -> Accepted:
        """Once the broker has it. Raises RefusedError."""
        self._take_room(1)
        try:
            return await self._accept_checked(checked)
        finally:
            self._in_flight -= 1

    async def accept_many(
        self, items: Sequence[Callable[[], CheckedRequest]], request_id: str
    ) -> list[Accepted | RefusedError]:
        """A result per item, in order; each is checked in its turn. Raises RefusedError when every item may only be sent again."""

        async def one(item: Callable[[], CheckedRequest]) -> Accepted | RefusedError:
            try:
                return await self._accept_checked(item())
            except RefusedError as refused:
                return refused
            except Exception:
                log.exception("ingest failed", request_id=request_id)
                return RefusedError(Refusal.BROKEN, "internal_error", "this is our fault; see request_id")

        self._take_room(len(items))
        try:
            # Tasks that start in one turn of the loop publish in one batch; a turn with all of them would delay other callers.
            tasks = []
            for index, item in enumerate(items):
                tasks.append(asyncio.create_task(one(item)))
                if index % ITEMS_A_TURN == ITEMS_A_TURN - 1:
                    await asyncio.sleep(0)
            results = await asyncio.gather(*tasks)
        finally:
            self._in_flight -= len(items)
        busy = [found for found in results if isinstance(found, RefusedError) and found.kind is Refusal.BUSY]
        if results and len(busy) == len(results):
            raise _busy(busy[0].code, str(busy[0]))
        return results

    def _take_room(self, count: int) -> None:
        if self._in_flight and self._in_flight + count > MAX_IN_FLIGHT:
            raise _busy("overloaded", "too many requests wait for the broker")
        self._in_flight += count

    async def _accept_checked(self, checked: CheckedRequest) -> Accepted:
        key, notification = checked.key, checked.notification
        if notification.template is not None:
            try:
                await self._templates.check(checked.tenant, notification.template, notification.data)
            except RefusedError as refused:
                # A template that changed since does not take back what was accepted under the key.
                if refused.kind is not Refusal.INVALID or not await self._is_repeated(
                    checked.tenant, key, checked.body_hash
                ):
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
            raise _busy("store_unavailable", str(exc)) from exc
        return key_record is not None and key_record.body_hash == digest

    async def _accept_keyed(self, checked: CheckedRequest, key: str) -> Accepted:
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
        except RefusedError as refused:
            flight.accepted.set_exception(refused)
            raise
        except BaseException as exc:
            flight.accepted.set_exception(_busy("overloaded", "the request this one waited for was cut off"))
            raise exc
        else:
            flight.accepted.set_result(accepted)
        finally:
            del self._flights[name]
            flight.accepted.exception()  # marks it as retrieved: other callers may not be waiting for it
        return accepted

    async def _reserve_and_publish(self, checked: CheckedRequest, key: str) -> Accepted:
        accepted_at = self._clock()
        notification_id = ids.notification_id(accepted_at, checked.tenant, key)
        try:
            key_record = await self._idempotency.reserve(
                KeyReservation(checked.tenant, key, notification_id, checked.body_hash, accepted_at)
            )
        except UnavailableError as exc:
            raise _busy("store_unavailable", str(exc)) from exc
        self._recovered("store_unavailable")
        if key_record.body_hash != checked.body_hash:
            raise RefusedError(
                Refusal.CONFLICT,
                "idempotency_conflict",
                "this idempotency key was used with another body",
                errors=[FieldError("", "the body differs from the first one of this key", "idempotency_conflict")],
            )
        if not key_record.confirmed:
            # Also when another process may be publishing it right now: the same id twice is one notification.
            await self._publish(checked, key_record.notification_id, key_record.accepted_at)
            self._idempotency.confirm(checked.tenant, key)
        return Accepted(key_record.notification_id, key_record.accepted_at, replayed=not key_record.won)

    async def _publish(self, checked: CheckedRequest, notification_id: str, accepted_at: int) -> None:
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
            raise RefusedError(Refusal.INVALID, "invalid_request", "the request is too large once encoded") from exc
        try:
            await self._batcher.publish([record])
        except PublishError as exc:
            log.warning(
                "publish not acknowledged",
                notification_id=notification_id,
                correlation_id=checked.correlation_id,
                error=str(exc),
            )
            raise _busy("kafka_unavailable", "Kafka did not confirm the notification: send it again") from exc
        self._recovered("kafka_unavailable")
        lane = checked.notification.priority
        self._accepted[lane].inc()
        self._recent.add(notification_id, checked.tenant, accepted_at, lane)


def _busy(code: str, why: str) -> RefusedError:
    return RefusedError(Refusal.BUSY, code, why)
