"""GET /v1/notifications/{id}/explain: the whole story of a notification.

May import fastapi and tracking. Never: a fact that is not in the store.
"""

# No `from __future__ import annotations` here: FastAPI could not see the dependency that the router is given.
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse

from api.caller import Authenticate, Caller
from api.path_ids import PathId
from tracking.explain import Store, gather_facts
from tracking.status import PREFIX, Statuses
from tracking.story import explain_facts


def explain_router(store: Store, statuses: Statuses, authenticate: Authenticate) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["notifications"])
    Who = Annotated[Caller, Depends(authenticate)]

    @router.get(f"{PREFIX}/{{notification_id}}/explain", summary="The whole story, with the reasons in words")
    async def explain_notification(notification_id: PathId, caller: Who) -> JSONResponse:
        """From stored facts only: a preference or template that is changed later does not change it. `acceptance` is null
        for about a second, until ClickHouse has the request."""
        found_id, found = await statuses.find(caller.tenant, notification_id)
        return JSONResponse(explain_facts(await gather_facts(store, caller.tenant, found_id, found)))

    return router
