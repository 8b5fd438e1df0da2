"""A tenant's notifications, the newest first, by status, user and tag.

An id sorts by its time, so a page continues below the last id of the one before. The store is searched in windows that grow,
newest first: a page is mostly found in the first, and a rare filter costs one pass over all of them.
May import tracking.status. Never: HTTP, a tenant that is not the key's; a user's addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from uuid import UUID

from runtime.clock import Clock, system_clock
from runtime.status import rfc3339
from schemas.identity import HOUR_S, LAST_HOUR_S, hour_of
from sinks.rows import MAX_TIME_MS
from tracking.status import accepted_at_of, links, of_some

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
WINDOWS_H = (1, 8, 72, 744)
"""Looked through one after the other from the newest on; then everything before."""
MAX_QUERIES_AT_ONCE = 4

Row = Mapping[str, Any]


class Store(Protocol):
    """The part of StatusStore that is used."""

    async def select(self, name: str, parameters: Mapping[str, Any]) -> Sequence[Row]: ...


@dataclass(frozen=True, slots=True)
class Filters:
    """What is asked for; '' is any."""

    state: str = ""
    user_id: str = ""
    tag: str = ""
    template_id: str = ""
    correlation_id: str = ""
    from_at: int = 0
    """Accepted at this time or later, ms since 1970."""
    to_at: int = MAX_TIME_MS
    """Accepted at this time or before."""


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, and the id below which the next page starts; None at the end."""

    entries: list[dict[str, Any]]
    next_id: UUID | None
    rows: Sequence[Row] = ()
    """Those of the entries, as the store has them."""


def windows(until: int, now: int) -> list[tuple[int, int]]:
    """(since, until) in seconds, whole hours, from the newest to the beginning; `now` and `until` in seconds."""
    found = []
    start = min(until, now) // HOUR_S * HOUR_S
    upper = until
    for hours in WINDOWS_H:
        since = start - hours * HOUR_S
        if since <= 0:
            break
        found.append((since, upper))
        upper = since - HOUR_S
    return [*found, (0, upper)]


class Listing:
    """Finds pages."""

    def __init__(self, store: Store, clock: Clock = system_clock) -> None:
        self._store, self._clock = store, clock
        self._turns = asyncio.Semaphore(MAX_QUERIES_AT_ONCE)

    async def page(self, tenant: str, filters: Filters, before: UUID | None, limit: int) -> Page:
        """The `limit` newest below `before`. Raises UnavailableError when the store is unavailable."""
        until = LAST_HOUR_S if before is None else hour_of(accepted_at_of(before))
        until = min(until, hour_of(filters.to_at))
        parameters = {
            "tenant": tenant,
            "before": before.hex if before else "",
            **asdict(filters),
        }
        rows: list[Row] = []
        async with self._turns:
            for since, upper in windows(until, self._clock() // 1_000):
                wanted = {**parameters, "since": since, "until": upper, "limit": limit + 1 - len(rows)}
                name = "notifications_in_state" if filters.state else "notifications"
                rows += await self._store.select(name, wanted)
                if len(rows) > limit or since * 1_000 <= filters.from_at:
                    break
            shown = rows[:limit]
            states = await self._states(tenant, shown)
        entries = [_entry(row, *states.get(row["id"], ("accepted", ""))) for row in shown]
        # It may have moved on between the two looks.
        kept = [at for at, entry in enumerate(entries) if not filters.state or entry["status"] == filters.state]
        next_id = UUID(hex=shown[-1]["id"]) if len(rows) > limit else None
        return Page([entries[at] for at in kept], next_id, [shown[at] for at in kept])

    async def _states(self, tenant: str, rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
        if not rows:
            return {}
        parameters = of_some(tenant, [UUID(hex=row["id"]) for row in rows])
        found = await self._store.select("states_of", parameters)
        return {row["id"]: (row["state"], row["reason"]) for row in found}


def _entry(row: Row, state: str, reason: str) -> dict[str, Any]:
    notification_id = str(UUID(hex=row["id"]))
    return {
        "id": notification_id,
        "status": state,
        "reason": reason or None,
        "accepted_at": rfc3339(row["accepted_at"]),
        "user_id": row["user_id"] or None,
        "priority": row["lane"],
        "category": row["category"],
        "template_id": row["template_id"] or None,
        "tags": list(row["tags"]),
        "links": links(notification_id),
    }
