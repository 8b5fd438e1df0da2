"""Users over HTTP: the recipients with their addresses and devices.

May import fastapi. Never: SQL.
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from functools import cache
from typing import Annotated, Any
from urllib.parse import quote
from zoneinfo import available_timezones

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field

from api.caller import Authenticate, Caller
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, page_of, read_cursor, write_cursor
from api.path_ids import PathId
from api.reference.responses import WriteResponses, check_same_id, clean_id, or_404
from api.requests import JSON_TYPE, MERGE_PATCH_TYPE, check_model, read_json, read_model
from producers.addresses import display_name
from producers.notification import Device, Email, Locale, Phone, Strict, UserId
from producers.reference.store import ExistsError, ReferenceStore, Row
from runtime.http.problems import FieldError, Problem
from runtime.status import rfc3339
from schemas.channels import CONTACT_FIELDS

_FIELDS = ("name", *CONTACT_FIELDS, "locale", "time_zone", "devices")


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _time_zone(text: str) -> str:
    if text not in _time_zones():
        raise ValueError("not an IANA time zone, like Europe/Berlin")
    return text


class UserFields(Strict):
    """What is known of a recipient."""

    name: Annotated[str, AfterValidator(display_name)] | None = None
    email: Email | None = None
    phone: Phone | None = None
    locale: Locale | None = None
    time_zone: Annotated[str, AfterValidator(_time_zone)] | None = None
    devices: Annotated[list[Device], Field(max_length=100, default_factory=list)]

    def fields(self) -> Row:
        """As the store takes it."""
        return {
            **self.model_dump(exclude={"devices"}),
            "devices": [d.model_dump(exclude_none=True) for d in self.devices],
        }


def _no_step(user_id: str) -> str:
    if user_id in (".", ".."):
        raise ValueError("an id of one or two dots cannot be called: clients take it for a step in a path")
    return user_id


class NewUser(UserFields):
    """A recipient."""

    id: Annotated[UserId, AfterValidator(_no_step)]


class ReplacedUser(UserFields):
    """A recipient; the id is the path's."""

    id: UserId | None = None


def merge_patch(target: Any, patch: Any) -> Any:
    """The target changed by the patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    changed = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            changed.pop(name, None)
        else:
            changed[name] = merge_patch(changed.get(name), value)
    return changed


def _user(row: Row) -> dict[str, Any]:
    times = {name: rfc3339(row[name]) for name in ("created_at", "updated_at")}
    return {"id": row["user_id"], **{name: row[name] for name in _FIELDS}, **times}


def users_router(store: ReferenceStore, responses: WriteResponses, authenticate: Authenticate) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", default_response_class=JSONResponse)
    # Authenticate first: the body of an unknown caller is not read.
    Who = Annotated[Caller, Depends(authenticate)]

    @router.post("/users", status_code=201, tags=["users"])
    async def create_user(request: Request, caller: Who) -> JSONResponse:
        """Create a recipient."""
        body = await read_model(request, NewUser)
        try:
            written = await store.create_user(caller.tenant, {"id": body.id, **body.fields()})
        except ExistsError as exc:
            why = "there is a user with this id; PUT replaces it"
            raise Problem(409, "conflict", why, errors=[FieldError("/id", why, "conflict")]) from exc
        return await responses.written(written, _user(written.row), f"/v1/users/{quote(body.id, safe='')}")

    @router.get("/users", tags=["users"])
    async def list_users(caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT) -> JSONResponse:
        """Recipients by id. A page of large ones has fewer than `limit`."""
        (after,) = read_cursor(cursor, str) or ("",)
        rows, more = await store.list_users(caller.tenant, after, limit)
        return JSONResponse(page_of(rows, more, _user, lambda row: write_cursor(row["user_id"])))

    @router.get("/users/{user_id}", tags=["users"])
    async def get_user(user_id: PathId, caller: Who) -> JSONResponse:
        """Read a recipient."""
        return JSONResponse(_user(await or_404(store.get_user(caller.tenant, clean_id(user_id)), "user")))

    @router.put("/users/{user_id}", tags=["users"])
    async def replace_user(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Replace a recipient; preferences stay."""
        body = await read_model(request, ReplacedUser)
        check_same_id(body.id, user_id)
        written = await or_404(store.replace_user(caller.tenant, clean_id(user_id), body.fields()), "user")
        return await responses.written(written, _user(written.row))

    @router.patch("/users/{user_id}", tags=["users"])
    async def change_user(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Change fields of a user (JSON merge patch, RFC 7396): null removes a field, devices are replaced whole."""
        patch = await read_json(request, MERGE_PATCH_TYPE, JSON_TYPE)
        if not isinstance(patch, dict):
            raise Problem(400, "invalid_request", "a merge patch of a user is an object")
        check_same_id(patch.get("id"), user_id)

        def changed(row: Row) -> Row:
            return check_model(ReplacedUser, merge_patch({name: row[name] for name in _FIELDS}, patch)).fields()

        written = await or_404(store.change_user(caller.tenant, clean_id(user_id), changed), "user")
        return await responses.written(written, _user(written.row))

    @router.delete("/users/{user_id}", status_code=204, tags=["users"])
    async def delete_user(user_id: PathId, caller: Who) -> Response:
        """Delete a recipient with the preferences."""
        written = await or_404(store.delete_user(caller.tenant, clean_id(user_id)), "user")
        return await responses.deleted(written)

    return router
