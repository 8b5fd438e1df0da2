"""Preferences over HTTP: which channels and categories a user wants.

May import fastapi. Never: SQL, how a preference decides (processors/router/policy.py).
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from api.caller import Authenticate, Caller
from api.path_ids import PathId
from api.reference.responses import done
from api.requests import read_model
from producers.reference.inputs import Preferences
from producers.reference.service import ReferenceService


def preferences_router(service: ReferenceService, authenticate: Authenticate) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", default_response_class=JSONResponse)
    Who = Annotated[Caller, Depends(authenticate)]

    @router.get("/users/{user_id}/preferences", tags=["users"])
    async def get_preferences(user_id: PathId, caller: Who) -> JSONResponse:
        """Read what a recipient wants."""
        return JSONResponse(await service.preferences(caller.tenant, user_id))

    @router.put("/users/{user_id}/preferences", tags=["users"])
    async def replace_preferences(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Replace what a recipient wants."""
        body = await read_model(request, Preferences)
        return done(await service.replace_preferences(caller.tenant, user_id, body))

    return router
