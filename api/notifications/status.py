"""GET /v1/notifications/{id} and /{id}/events: the outcome of a notification, and every fact about it.

May import fastapi and tracking. Never: a question to a store.
"""

# No `from __future__ import annotations` here: FastAPI could not see the dependency that the router is given.
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse

from api.caller import Authenticate, Caller
from api.path_ids import PathId
from tracking.status import PREFIX, Statuses, accepted_at_of, event_entry, rollup


def status_router(statuses: Statuses, authenticate: Authenticate) -> APIRouter:
    """The routes; errors leave as RefusedError and UnavailableError, for the application's handlers."""
    router = APIRouter(tags=["notifications"])
    Who = Annotated[Caller, Depends(authenticate)]

    @router.get(f"{PREFIX}/{{notification_id}}", summary="Status of a notification and of its messages")
    async def read_notification(notification_id: PathId, caller: Who) -> JSONResponse:
        found_id, found = await statuses.find(caller.tenant, notification_id)
        return JSONResponse(rollup(str(found_id), accepted_at_of(found_id), found.events))

    @router.get(f"{PREFIX}/{{notification_id}}/events", summary="Every fact about a notification")
    async def read_events(notification_id: PathId, caller: Who) -> JSONResponse:
        _, found = await statuses.find(caller.tenant, notification_id)
        return JSONResponse({"entries": [event_entry(event) for event in found.events], "next_cursor": None})

    return router
