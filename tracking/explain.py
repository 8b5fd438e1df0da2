"""Everything the store has of a notification, for its story.

May import tracking.story and tracking.status. Never: HTTP, a fact that is not in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from schemas.identity import hour_of
from tracking.status import Found, accepted_at_of
from tracking.story import Facts


class Store(Protocol):
    """The part of StatusStore that is used."""

    async def select(self, name: str, parameters: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]: ...


async def gather_facts(store: Store, tenant: str, notification_id: UUID, found: Found) -> Facts:
    """Everything the store has of it. Raises UnavailableError, StoreError."""
    accepted_at = accepted_at_of(notification_id)
    identity = {"tenant": tenant, "hour": hour_of(accepted_at), "id": notification_id.hex}
    pairs = sorted({(e["provider"], e["provider_message_id"]) for e in found.events if e["provider_message_id"]})
    asked = [
        store.select("explain_request", identity),
        store.select("explain_generations", identity),
        store.select("explain_dead_letters", {"tenant": tenant, "id": notification_id.hex}),
        store.select("conditions", {}),
    ]
    if pairs:
        messages = sorted({UUID(e["message_id"]).hex for e in found.events if e["message_id"]})
        wanted = {
            "providers": [provider for provider, _ in pairs],
            "provider_message_ids": [theirs for _, theirs in pairs],
            "messages": messages,
        }
        asked.append(store.select("explain_receipts", wanted))
    request, generations, dead_letters, conditions, *receipts = await asyncio.gather(*asked)
    return Facts(
        notification_id=str(notification_id),
        accepted_at=accepted_at,
        accepted=found.accepted,
        events=found.events,
        request=request[0] if request else None,
        generations=generations,
        dead_letters=dead_letters,
        conditions=conditions,
        receipts=receipts[0] if receipts else (),
    )
