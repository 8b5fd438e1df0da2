"""Users over HTTP: the recipients with their addresses and devices.

May import fastapi. Never: SQL, a rule of the data (producers/reference/service.py).
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from api.caller import Authenticate, Caller
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, page_of, read_cursor, write_cursor
from api.path_ids import PathId
from api.reference.responses import done
from api.requests import JSON_TYPE, MERGE_PATCH_TYPE, read_json, read_model
from producers.reference.inputs import NewUser, ReplacedUser
from producers.reference.service import ReferenceService, show_user


def users_router(service: ReferenceService, authenticate: Authenticate) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", default_response_class=JSONResponse)
    # Authenticate first: the body of an unknown caller is not read.
    Who = Annotated[Caller, Depends(authenticate)]

    @router.post("/users", status_code=201, tags=["users"])
    async def create_user(request: Request, caller: Who) -> JSONResponse:
        """Create a recipient."""
        body = await read_model(request, NewUser)
        return done(await service.create_user(caller.tenant, body), f"/v1/users/{quote(body.id, safe='')}")

    @router.get("/users", tags=["users"])
    async def list_users(caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT) -> JSONResponse:
        """Recipients by id. A page of large ones has fewer than `limit`."""
        (after,) = read_cursor(cursor, str) or ("",)
        rows, more = await service.list_users(caller.tenant, after, limit)
        return JSONResponse(page_of(rows, more, show_user, lambda row: write_cursor(row["user_id"])))

    @router.get("/users/{user_id}", tags=["users"])
    async def get_user(user_id: PathId, caller: Who) -> JSONResponse:
        """Read a recipient."""
        return JSONResponse(await service.user(caller.tenant, user_id))

    @router.put("/users/{user_id}", tags=["users"])
    async def replace_user(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Replace a recipient; preferences stay."""
        body = await read_model(request, ReplacedUser)
        return done(await service.replace_user(caller.tenant, user_id, body))

    @router.patch("/users/{user_id}", tags=["users"])
    async def change_user(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Change fields of a user (JSON merge patch, RFC 7396): null removes a field, devices are replaced whole."""
        patch = await read_json(request, MERGE_PATCH_TYPE, JSON_TYPE)
        return done(await service.change_user(caller.tenant, user_id, patch))

    @router.delete("/users/{user_id}", status_code=204, tags=["users"])
    async def delete_user(user_id: PathId, caller: Who) -> Response:
        """Delete a recipient with the preferences."""
        await service.delete_user(caller.tenant, user_id)
        return Response(status_code=204)

    return router
