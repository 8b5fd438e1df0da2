"""One question to a store for all that one level of a query asks for.

Each loader lives as long as one operation, and answers the same id once.
May import strawberry's loader and the stores. Never: a type of the schema, another tenant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from strawberry.dataloader import DataLoader

from producers.reference.store import ReferenceStore
from tracking.status import MAX_TOGETHER, Event, StatusStore, accepted_at_of, of_some
from tracking.story import Facts, explain_facts

Row = dict[str, Any]


class Loaders:
    """Everything of one tenant, by id."""

    def __init__(self, statuses: StatusStore, reference: ReferenceStore, tenant: str) -> None:
        self._statuses, self._reference, self._tenant = statuses, reference, tenant
        self.events: DataLoader[UUID, tuple[Event, ...]] = DataLoader(self._events, max_batch_size=MAX_TOGETHER)
        """Facts of a notification, in the order of time; () for none."""
        self.requests: DataLoader[UUID, Row | None] = DataLoader(self._requests, max_batch_size=MAX_TOGETHER)
        """What sinks/queries/requests_of.sql has of a notification; None until the store has it."""
        self.stories: DataLoader[UUID, Row] = DataLoader(self._stories, max_batch_size=MAX_TOGETHER)
        """As tracking.story tells it, of the facts, the request and the conditions alone."""
        self.users: DataLoader[str, Row | None] = DataLoader(self._users)
        self.templates: DataLoader[str, Row | None] = DataLoader(self._templates)
        self.versions: DataLoader[tuple[str, int | None], Row | None] = DataLoader(self._versions)
        """By template and version; version None is the published one, or else the latest."""

    async def _events(self, ids: list[UUID]) -> Sequence[tuple[Event, ...]]:
        found = await self._statuses.events_of(self._tenant, ids)
        return [found[one] for one in ids]

    async def _requests(self, ids: list[UUID]) -> Sequence[Row | None]:
        rows = await self._statuses.select("requests_of", of_some(self._tenant, ids))
        found = {UUID(hex=row["id"]): row for row in rows}
        return [found.get(one) for one in ids]

    async def _stories(self, ids: list[UUID]) -> Sequence[Row]:
        events, requests = await self.events.load_many(ids), await self.requests.load_many(ids)
        conditions = await self._statuses.select("conditions", {})
        return [
            _story(one, facts, request, conditions) for one, facts, request in zip(ids, events, requests, strict=True)
        ]

    async def _users(self, ids: list[str]) -> Sequence[Row | None]:
        found = await self._reference.find_users(self._tenant, ids)
        return [found.get(one) for one in ids]

    async def _templates(self, ids: list[str]) -> Sequence[Row | None]:
        found = await self._reference.find_templates(self._tenant, ids)
        return [found.get(one) for one in ids]

    async def _versions(self, wanted: list[tuple[str, int | None]]) -> Sequence[Row | None]:
        found = await self._reference.find_versions(self._tenant, wanted)
        return [found.get(one) for one in wanted]


def _story(
    notification_id: UUID, events: Sequence[Event], request: Row | None, conditions: Sequence[Row]
) -> dict[str, Any]:
    accepted_at = accepted_at_of(notification_id)
    # Without what the story of one alone shows of its request: `why` looks at the lane and the time only.
    whole = None if request is None else {**_UNSAID, **request}
    facts = Facts(str(notification_id), accepted_at, True, events=events, request=whole, conditions=conditions)
    return explain_facts(facts)


_UNSAID: Row = {
    "source": "",
    "keyed": False,
    "channels": (),
    "strategy": "",
    "delivery": "",
    "expires_at": None,
    "dry_run": False,
    "generation": 0,
}
