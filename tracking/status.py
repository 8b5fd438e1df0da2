"""The outcome of a notification, out of its facts.

A status is readable at once after its 202: what this process accepted lately is known before ClickHouse has it, and for
a young id of another process the answer waits a moment. A tenant never learns of another's ids: they are unknown to it.
May import sinks. Never: HTTP, a decision about a state (schemas/reasons.yaml).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from clickhouse_connect.driver.client import Client

from runtime.clock import Clock, system_clock
from runtime.errors import Refusal, RefusedError, UnavailableError
from runtime.logs import get_logger
from runtime.settings import ClickHouseSettings
from runtime.status import rfc3339
from schemas.events import states
from schemas.identity import hour_of
from sinks import clickhouse
from sinks.rows import MAX_TIME_MS

log = get_logger("status")
PREFIX = "/v1/notifications"
YOUNG_MS = 30_000
"""A notification accepted this recently may not be in ClickHouse yet."""
WAIT_S = 3.0
POLL_S = 0.15
READERS = 8
MAX_TOGETHER = 200
"""Notifications that one question to the store is about."""
STORE_TIMEOUT_S = 5.0
MAX_WAITING = 64
"""Callers that wait for a young id at once: asking for made-up ids must not occupy the store."""

Event = Mapping[str, Any]
"""A row of sinks/queries/events.sql."""


RecentlyAccepted = Callable[[str], Mapping[str, Any] | None]
"""{"tenant", "accepted_at", ...} of an id that this process accepted lately, else None."""


# ---------------------------------------------------------------- rollup


def rollup(notification_id: str, accepted_at: int, events: Sequence[Event]) -> dict[str, Any]:
    """The notification as the API shows it, out of its facts in any order.

    | messages          | status                                              | reason                       |
    |-------------------|-----------------------------------------------------|------------------------------|
    | none              | the greatest fact about the whole, else `accepted`  | that fact's                  |
    | some unsettled    | the least advanced of those                         | the messages' common one     |
    | all settled       | the first of `best_first` that a message has        | the messages' common one     |
    """
    by_message: dict[str, list[Event]] = {}
    for event in events:
        by_message.setdefault(event["message_id"], []).append(event)
    whole = by_message.pop("", [])
    messages = [_message(message_id, facts) for message_id, facts in by_message.items()]
    messages.sort(key=lambda message: (message["channel"] or "", message["id"]))
    status, reason = _status(messages, whole)
    return {
        "id": notification_id,
        "status": status,
        "reason": reason,
        "accepted_at": rfc3339(accepted_at),
        "messages": messages,
        "links": links(notification_id),
    }


def links(notification_id: str) -> dict[str, str]:
    """Where else to look."""
    where = f"{PREFIX}/{notification_id}"
    return {"self": where, "events": f"{where}/events"}


def _order(event: Event) -> tuple[int, int, str]:
    return event["rank"], event["occurred_at"], event["event_id"]


def _status(messages: Sequence[Mapping[str, Any]], whole: Sequence[Event]) -> tuple[str, str | None]:
    known = states()
    if not messages:
        greatest = max((event for event in whole if event["rank"] >= 0), key=_order, default=None)
        return (greatest["state"], greatest["reason"] or None) if greatest else ("accepted", None)
    reasons = {message["reason"] for message in messages}
    reason = reasons.pop() if len(reasons) == 1 else None
    found = {message["status"] for message in messages}
    unsettled = found - known.settled
    if unsettled:
        return min(unsettled, key=known.rank.__getitem__), reason
    return min(found, key=known.best_first.index), reason


def _message(message_id: str, facts: Sequence[Event]) -> dict[str, Any]:
    greatest = max((event for event in facts if event["rank"] >= 0), key=_order, default=None)
    account = max(facts, key=lambda e: (bool(e["provider"]) + bool(e["provider_message_id"]), *_order(e)))
    return {
        "id": message_id,
        "channel": max(event["channel"] for event in facts) or None,
        # A message exists only once it is routed: with nothing but retries known so far, that is its state.
        "status": greatest["state"] if greatest else "routed",
        "reason": (greatest["reason"] or None) if greatest else None,
        "provider": account["provider"] or None,
        "provider_message_id": account["provider_message_id"] or None,
        "possible_duplicate": any(event["possible_duplicate"] for event in facts),
        "attempts": _attempts(facts),
    }


def _attempts(facts: Sequence[Event]) -> list[dict[str, Any]]:
    """The result of each attempt: its highest state, or `retrying` if it only led to the next."""
    known = states()

    def order(event: Event) -> tuple[int, int, str]:
        # A definite not-sent says more than `sending`, and less than any end.
        rank = known.rank["sending"] + 1 if event["state"] in known.events else event["rank"]
        return rank, event["occurred_at"], event["event_id"]

    by_attempt: dict[int, list[Event]] = {}
    for event in facts:
        if event["attempt"] > 0 and event["state"] not in known.engagement:
            by_attempt.setdefault(event["attempt"], []).append(event)
    attempts = []
    for attempt, of_attempt in sorted(by_attempt.items()):
        last = max(of_attempt, key=order)
        provider = last["provider"] or max(event["provider"] for event in of_attempt)
        attempts.append(
            {
                "attempt": attempt,
                "provider": provider or None,
                "state": last["state"],
                "reason": last["reason"] or None,
                "occurred_at": rfc3339(last["occurred_at"]),
            }
        )
    return attempts


def event_entry(event: Event) -> dict[str, Any]:
    """One fact as the API shows it."""
    return {
        "id": event["event_id"],
        "message_id": event["message_id"] or None,
        "channel": event["channel"] or None,
        "lane": event["lane"],
        "state": event["state"],
        "reason": event["reason"] or None,
        "detail": event["detail"] or None,
        "attempt": event["attempt"],
        "provider": event["provider"] or None,
        "provider_message_id": event["provider_message_id"] or None,
        "possible_duplicate": event["possible_duplicate"],
        "template_id": event["template_id"] or None,
        "template_version": event["template_version"],
        "preference_version": event["preference_version"],
        "occurred_at": rfc3339(event["occurred_at"]),
        "latency_ms": event["latency_ms"],
        "correlation_id": event["correlation_id"] or None,
    }


# ---------------------------------------------------------------- store


@dataclass(frozen=True, slots=True)
class Found:
    """What the store has of a notification."""

    accepted: bool
    events: tuple[Event, ...] = ()


class StatusStore:
    """Reads facts out of ClickHouse, on threads of its own."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="status")
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._waiting: dict[str, list[tuple[UUID, asyncio.Future[Found | None]]]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._reading = 0

    async def read(self, tenant: str, notification_id: UUID) -> Found | None:
        """None when the store has nothing of it under this tenant. Raises UnavailableError.

        What is asked for while all threads are busy is asked of the store together.
        """
        answer: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, []).append((notification_id, answer))
        self._read_waiting()
        return await answer

    def _read_waiting(self) -> None:
        while self._waiting and self._reading < READERS:
            tenant = next(iter(self._waiting))
            asked = self._waiting.pop(tenant)
            asked, later = asked[:MAX_TOGETHER], asked[MAX_TOGETHER:]
            if later:
                self._waiting[tenant] = later
            self._reading += 1
            task = asyncio.ensure_future(self._answer(tenant, asked))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, tenant: str, asked: Sequence[tuple[UUID, asyncio.Future[Found | None]]]) -> None:
        ids = list(dict.fromkeys(notification_id for notification_id, _ in asked))
        found: Mapping[UUID, Found | None] = {}
        error: BaseException = UnavailableError("the question was cut off")
        try:
            loop = asyncio.get_running_loop()
            if len(ids) == 1:
                found = {ids[0]: await loop.run_in_executor(self._threads, self._read, tenant, ids[0])}
            else:
                found = await loop.run_in_executor(self._threads, self._read_many, tenant, ids)
        except UnavailableError as exc:
            error = exc
        except Exception as exc:
            log.exception("a question to ClickHouse failed")
            error = exc
        finally:
            self._reading -= 1
            for notification_id, answer in asked:
                if answer.done():
                    continue
                if notification_id in found:
                    answer.set_result(found[notification_id])
                else:
                    answer.set_exception(error)
            self._read_waiting()

    def _read_many(self, tenant: str, ids: Sequence[UUID]) -> dict[UUID, Found | None]:
        parameters = of_some(tenant, ids)
        events = _events_by_id(ids, self._select("events_of", parameters))
        accepted = {UUID(row["id"]) for row in self._select("accepted_of", parameters)}
        return {one: Found(one in accepted, events[one]) if one in accepted or events[one] else None for one in ids}

    def _read(self, tenant: str, notification_id: UUID) -> Found | None:
        parameters = {"tenant": tenant, "hour": hour_of(accepted_at_of(notification_id)), "id": notification_id.hex}
        events = self._select("events", parameters)
        accepted = bool(self._select("notification", parameters))
        return Found(accepted, tuple(events)) if accepted or events else None

    async def events_of(self, tenant: str, ids: Sequence[UUID]) -> dict[UUID, tuple[Event, ...]]:
        """The facts of each, () for none; of up to MAX_TOGETHER. Raises UnavailableError."""
        return _events_by_id(ids, await self.select("events_of", of_some(tenant, ids)))

    async def select(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows of sinks/queries/<name>.sql. Raises UnavailableError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._select, name, parameters)

    def _select(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        try:
            return clickhouse.select(self._settings, self._connected(), name, parameters)
        except clickhouse.StoreError as exc:
            # A missing table, a missing right, too little memory: the operator must fix it, the caller may retry.
            log.error("ClickHouse refuses a question", query=name, error=str(exc))
            raise UnavailableError("analytics cannot answer this now") from exc
        except UnavailableError as exc:
            # Where it listens and what its client said is nothing to a caller.
            log.debug("ClickHouse does not answer", query=name, error=str(exc))
            raise UnavailableError("analytics do not answer; try again in a second") from exc

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = clickhouse.connect(self._settings, timeout_s=STORE_TIMEOUT_S, connections=READERS)
            return self._client


def _events_by_id(ids: Sequence[UUID], rows: Sequence[dict[str, Any]]) -> dict[UUID, tuple[Event, ...]]:
    """Rows of events_of.sql by the notification they are about, () for none."""
    events: dict[UUID, list[Event]] = {one: [] for one in ids}
    for row in rows:
        events[UUID(row.pop("id"))].append(row)
    return {one: tuple(found) for one, found in events.items()}


def of_some(tenant: str, ids: Sequence[UUID]) -> dict[str, Any]:
    """The parameters of a question about some notifications."""
    hours = sorted({hour_of(accepted_at_of(notification_id)) for notification_id in ids})
    return {"tenant": tenant, "hours": hours, "ids": [notification_id.hex for notification_id in ids]}


def accepted_at_of(notification_id: UUID) -> int:
    """The time in the id, as the store has it (ms)."""
    return min(notification_id.int >> 80, MAX_TIME_MS)


class Store(Protocol):
    """The part of StatusStore that is used."""

    async def read(self, tenant: str, notification_id: UUID) -> Found | None: ...


class Statuses:
    """Finds a notification for a tenant, also in its first moments."""

    def __init__(self, store: Store, recently_accepted: RecentlyAccepted, clock: Clock = system_clock) -> None:
        self._store, self._recent, self._clock = store, recently_accepted, clock
        self._waiting = asyncio.Semaphore(MAX_WAITING)

    async def find(self, tenant: str, text: str) -> tuple[UUID, Found]:
        """The id and what is known. Raises RefusedError, and UnavailableError when the store is unavailable."""
        try:
            notification_id = UUID(text)
        except ValueError as exc:
            raise RefusedError(Refusal.INVALID, "invalid_id", "a notification id is a UUID") from exc
        if str(notification_id) != text.lower():
            raise RefusedError(Refusal.INVALID, "invalid_id", "a notification id is a UUID in its canonical form")
        if notification_id.version != 7:
            raise _not_found()
        mine = self.is_recent(tenant, str(notification_id))
        young = abs(self._clock() - accepted_at_of(notification_id)) < YOUNG_MS
        # Without an answer nothing is said, not even of what was accepted a moment ago: it may have been sent since.
        found = await self._store.read(tenant, notification_id)
        if found is None and mine:
            if not young:
                raise UnavailableError("the sink is behind: what became of this notification is not known yet")
            found = Found(accepted=True)
        # Another tenant's, too, although it is known not to come: one that nobody has would not be answered at once either.
        if found is None and young:
            found = await self._wait_for(tenant, notification_id)
        if found is None:
            raise _not_found()
        return notification_id, found

    async def read(self, tenant: str, notification_id: str) -> Found | None:
        """What the store has of an id that is known to be one. Raises UnavailableError."""
        return await self._store.read(tenant, UUID(notification_id))

    def is_recent(self, tenant: str, notification_id: str) -> bool:
        """Whether this process accepted it lately, for this tenant."""
        return self._recent_of(tenant, notification_id) is not None

    def lane_of(self, tenant: str, notification_id: str) -> str | None:
        """Of what this process accepted lately, for this tenant; else None."""
        recent = self._recent_of(tenant, notification_id)
        return recent["lane"] if recent is not None else None

    def _recent_of(self, tenant: str, notification_id: str) -> Mapping[str, Any] | None:
        recent = self._recent(notification_id)
        return recent if recent is not None and recent["tenant"] == tenant else None

    async def _wait_for(self, tenant: str, notification_id: UUID) -> Found | None:
        if self._waiting.locked():
            return None
        async with self._waiting:
            # By the clock, since each question takes time, too: live status waits for this a second longer and no more.
            loop = asyncio.get_running_loop()
            until = loop.time() + WAIT_S
            while loop.time() < until:
                await asyncio.sleep(POLL_S)
                if found := await self._store.read(tenant, notification_id):
                    return found
        return None


def _not_found() -> RefusedError:
    return RefusedError(Refusal.UNKNOWN, "not_found", "there is no such notification")
