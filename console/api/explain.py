"""GET /v1/notifications/{id}/explain: the whole story of a notification.

May import console.api.story and console.api.status. Never: a fact that is not in the store.
"""

# No `from __future__ import annotations` here: FastAPI could not see the dependency that `explain_router` is given.
import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse

from api.path_ids import PathId
from console.api.status import PREFIX, Authenticate, Caller, Found, Statuses, accepted_at_of
from console.api.story import Facts, explain_facts


class Store(Protocol):
    """The part of StatusStore that is used."""

    async def select(self, name: str, parameters: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]: ...


async def gather_facts(store: Store, tenant: str, notification_id: UUID, found: Found) -> Facts:
    """Everything the store has of it. Raises UnavailableError, StoreError."""
    accepted_at = accepted_at_of(notification_id)
    identity = {"tenant": tenant, "hour": accepted_at // 3_600_000 * 3_600, "id": notification_id.hex}
    pairs = sorted({(e["provider"], e["provider_message_id"]) for e in found.events if e["provider_message_id"]})
    asked = [
        store.select("explain_request", identity),
        store.select("explain_generations", identity),
        store.select("explain_dead_letters", {"tenant": tenant, "id": notification_id.hex}),
    ]
    if pairs:
        messages = sorted({UUID(e["message_id"]).hex for e in found.events if e["message_id"]})
        wanted = {
            "providers": [provider for provider, _ in pairs],
            "provider_message_ids": [theirs for _, theirs in pairs],
            "messages": messages,
        }
        asked.append(store.select("explain_receipts", wanted))
    request, generations, letters, *receipts = await asyncio.gather(*asked)
    return Facts(
        notification_id=str(notification_id), accepted_at=accepted_at, accepted=found.accepted, events=found.events,
        request=request[0] if request else None, generations=generations, dead_letters=letters,
        receipts=receipts[0] if receipts else (),
    )  # fmt: skip


def explain_router(store: Store, statuses: Statuses, authenticate: Authenticate) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["notifications"])
    Who = Annotated[Caller, Depends(authenticate)]

    @router.get(f"{PREFIX}/{{notification_id}}/explain", summary="The whole story, with the reasons in words")
    async def explain_notification(notification_id: PathId, caller: Who) -> JSONResponse:
        """Told from stored facts only: a preference or template that is changed later does not change it. `acceptance` is null
        for the second until analytics have the request."""
        found_id, found = await statuses.find(caller.tenant, notification_id)
        return JSONResponse(explain_facts(await gather_facts(store, caller.tenant, found_id, found)))

    return router
