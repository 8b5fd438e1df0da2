"""Preferences over HTTP: which channels and categories a user wants.

May import fastapi. Never: SQL, how a preference decides (processors/router/policy.py).
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api.caller import Authenticate, Caller
from api.path_ids import PathId
from api.reference.responses import WriteResponses, clean_id, or_404
from api.requests import read_model
from producers.notification import Category, Strict
from producers.reference.store import ReferenceStore
from schemas.channels import ChannelName

_Choices = dict[ChannelName, bool]


class Preferences(Strict):
    """What a recipient wants; what is not said is wanted."""

    channels: Annotated[_Choices, Field(default_factory=dict)]
    categories: Annotated[dict[Category, _Choices], Field(max_length=200, default_factory=dict)]


def preferences_router(store: ReferenceStore, responses: WriteResponses, authenticate: Authenticate) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", default_response_class=JSONResponse)
    Who = Annotated[Caller, Depends(authenticate)]

    @router.get("/users/{user_id}/preferences", tags=["users"])
    async def get_preferences(user_id: PathId, caller: Who) -> JSONResponse:
        """Read what a recipient wants."""
        return JSONResponse(await or_404(store.get_preferences(caller.tenant, clean_id(user_id)), "user"))

    @router.put("/users/{user_id}/preferences", tags=["users"])
    async def replace_preferences(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Replace what a recipient wants."""
        body = await read_model(request, Preferences)
        written = await or_404(store.replace_preferences(caller.tenant, clean_id(user_id), body.model_dump()), "user")
        return await responses.written(written, {name: written.row[name] for name in ("channels", "categories")})

    return router
