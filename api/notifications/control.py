"""POST /v1/notifications/{id}/cancel and /resend.

May import fastapi and tracking. Never: a decision of the router or a sender.
"""

# No `from __future__ import annotations` here: FastAPI could not see the dependency that the router is given.
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse

from api.caller import Authenticate, Caller
from api.path_ids import PathId
from api.requests import correlation_id_of, read_headers, traceparent_of
from runtime.http.problems import new_request_id
from tracking.control import Control
from tracking.status import PREFIX, links


def control_router(control: Control, authenticate: Authenticate) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["notifications"])
    Who = Annotated[Caller, Depends(authenticate)]

    @router.post(f"{PREFIX}/{{notification_id}}/cancel", status_code=202, summary="Cancel what is not sent yet")
    async def cancel(notification_id: PathId, caller: Who) -> JSONResponse:
        """200 or 202 with status `cancelled`: nothing was or will be sent. 202 with another status: the cancellation is
        stored and applies to every message that no sender has claimed yet; `GET` shows the outcome. 409: it is too late."""
        stored, body = await control.cancel(caller.tenant, notification_id)
        return JSONResponse(body, 202 if stored else 200)

    @router.post(f"{PREFIX}/{{notification_id}}/resend", status_code=202, summary="Send a settled one again")
    async def resend(notification_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """The same request as the next generation: new messages under the same id, decided and rendered again."""
        headers = read_headers(request.scope)
        correlation_id = correlation_id_of(headers) or new_request_id()
        found_id, generation = await control.resend(
            caller.tenant, notification_id, correlation_id, traceparent_of(headers)
        )
        body = {"id": found_id, "status": "accepted", "generation": generation, "links": links(found_id)}
        return JSONResponse(body, 202, {"Location": links(found_id)["self"], "X-Correlation-ID": correlation_id})

    return router
