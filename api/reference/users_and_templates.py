"""Users, preferences and templates over HTTP.

May import fastapi. Never: SQL.
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from collections.abc import Awaitable
from functools import cache
from typing import Annotated, Any, Self
from urllib.parse import quote
from zoneinfo import available_timezones

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from api.pagination import DEFAULT_LIMIT, Cursor, Limit, page, page_of, read_cursor, write_cursor
from api.path_ids import PathId
from api.reference.catalogue import TemplateCatalogue
from api.reference.propagation import Propagation
from api.reference.template_work import place_and_check
from api.requests import JSON_TYPE, MERGE_PATCH_TYPE, Authenticator, check_model, read_json, read_model
from producers.addresses import device_token, display_name, has_control
from producers.notification import TEMPLATE_ID, Category, Email, Id, JsonObject, Locale, Phone, Strict, UserId
from producers.reference.keys import Caller
from producers.reference.records import template_rows
from producers.reference.store import ExistsError, NotFoundError, ReferenceStore, Row, Written
from runtime.http.problems import FieldError, Problem, unavailable
from runtime.status import rfc3339
from runtime.templates.language import TemplateRefused
from runtime.templates.layouts import Fetch, written_form
from runtime.templates.layouts import Written as Template
from runtime.workers import BusyError, Workers
from schemas.channels import CHANNELS, CONTACT_FIELDS, SUBSCRIPTION_PLATFORMS, TOKEN_PLATFORMS, ChannelName, Platform
from schemas.codec import RecordTooLarge


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _time_zone(text: str) -> str:
    if text not in _time_zones():
        raise ValueError("not an IANA time zone, like Europe/Berlin")
    return text


_TOKEN_OR_SUBSCRIPTION = (
    f"{' and '.join(TOKEN_PLATFORMS)} take a token, {' and '.join(SUBSCRIPTION_PLATFORMS)} takes a subscription"
)


class Device(Strict):
    """A device that takes pushes: fcm and apns have a token, webpush a subscription."""

    platform: Platform
    token: Annotated[str, AfterValidator(device_token)] | None = None
    subscription: JsonObject | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        wanted, other = (
            (self.subscription, self.token)
            if self.platform in SUBSCRIPTION_PLATFORMS
            else (self.token, self.subscription)
        )
        if wanted is None or other is not None:
            raise PydanticCustomError("device", _TOKEN_OR_SUBSCRIPTION)
        if self.subscription is not None:
            endpoint, keys = self.subscription.get("endpoint"), self.subscription.get("keys")
            if not isinstance(endpoint, str) or not endpoint.startswith("https://") or not isinstance(keys, dict):
                raise PydanticCustomError("subscription", "a subscription has an https endpoint and keys")
        return self


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


_Choices = dict[ChannelName, bool]


class Preferences(Strict):
    """What a recipient wants; what is not said is wanted."""

    channels: Annotated[_Choices, Field(default_factory=dict)]
    categories: Annotated[dict[Category, _Choices], Field(max_length=200, default_factory=dict)]


class NewVersion(Strict):
    """The sources of a template. Parts by channel, and again by locale."""

    id: Id | None = None
    category: Category | None = None
    """None: that of the published version, or else of the latest."""
    channels: dict[str, Any]
    locales: Annotated[dict[Locale, dict[str, Any]], Field(max_length=100, default_factory=dict)]
    layout: Id | None = None
    publish: bool = True


class NewTemplate(NewVersion):
    """A template with its first version."""

    id: Id
    category: Category = "default"


class Published(Strict):
    """The version that notifications take that name none."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)]


def _iso(milliseconds: int) -> str:
    return rfc3339(milliseconds)


_FIELDS = ("name", *CONTACT_FIELDS, "locale", "time_zone", "devices")


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
    times = {name: _iso(row[name]) for name in ("created_at", "updated_at")}
    return {"id": row["user_id"], **{name: row[name] for name in _FIELDS}, **times}


def _template(row: Row, *, sources: bool) -> dict[str, Any]:
    short = {
        "id": row["template_id"],
        "version": row["version"],
        "published": row["published"],
        "variables": row["variables"],
    }
    return {**short, "category": row["category"], **written_form(row)} if sources else short


def _version(row: Row) -> dict[str, Any]:
    return {**_template(row, sources=True), "created_at": _iso(row["created_at"])}


def _listed(row: Row) -> dict[str, Any]:
    return {
        "id": row["template_id"],
        "category": row["category"],
        "published_version": row["published_version"],
        "latest_version": row["latest_version"],
        "updated_at": _iso(row["updated_at"]),
    }


def _fetch(store: ReferenceStore, tenant: str) -> Fetch:
    """Reads the published version of a template that another one includes."""

    async def fetch(name: str) -> dict[str, Any] | None:
        if not TEMPLATE_ID.fullmatch(name):
            return None
        row = await store.find_template(tenant, name, None)
        return written_form(row) if row is not None else None

    return fetch


async def _checked(tenant: str, name: str, body: NewVersion, fetch: Fetch, workers: Workers) -> Row:
    """The template with its required variables. Raises Problem: 400 template_invalid with line and reason, 503 when too many
    templates are being checked."""
    template = Template(name, body.channels, body.locales, body.layout)
    try:
        checked = await place_and_check(template, fetch, workers, tenant)
        version = {
            "category": body.category,
            "channels": checked.channels,
            "locales": checked.locales,
            "variables": checked.variables,
        }
        _check_size(tenant, name, version)
    except TemplateRefused as exc:
        raise Problem(
            400,
            "template_invalid",
            str(exc),
            errors=[FieldError(_pointer(exc.where), exc.reason, "template_invalid")],
            extra={"line": exc.line, "reason": exc.reason, "where": exc.where},
        ) from exc
    except BusyError as exc:
        raise unavailable("overloaded", "too many templates are being checked; try again in a second") from exc
    written = {"channels": body.channels, "locales": body.locales, "layout": body.layout}
    return {**version, "written": written if checked.is_placed else None}


def _check_size(tenant: str, name: str, version: Row) -> None:
    """Raises TemplateRefused for a template that its record has no room for."""
    category = version["category"] or "x" * 64  # an inherited one is no longer
    row = {**version, "category": category, "tenant": tenant, "template_id": name, "version": 2**31 - 1}
    try:
        template_rows(row, new=True, published=False, updated_at=2**48)
    except RecordTooLarge as exc:
        raise TemplateRefused(
            f"with its layout and locales it has {exc.size} bytes; {exc.limit} are allowed", where="channels"
        ) from exc


def _pointer(where: str) -> str:
    """email.html → /channels/email/html, de.sms.text → /locales/de/sms/text."""
    parts = where.split(".")
    if parts[0] in ("channels", "template"):
        return "/channels"
    if parts[0] == "layout":
        return "/layout"
    return "/" + "/".join(["channels", *parts] if parts[0] in CHANNELS else ["locales", *parts])


def _same_id(body_id: str | None, path_id: str) -> None:
    if body_id is not None and body_id != path_id:
        why = "id differs from the one in the path"
        raise Problem(400, "invalid_request", why, errors=[FieldError("/id", why, "invalid_value")])


def _missing(what: str) -> Problem:
    return Problem(404, "not_found", f"there is no such {what}")


def reference_router(
    store: ReferenceStore,
    templates: TemplateCatalogue,
    propagation: Propagation,
    authenticate: Authenticator,
    workers: Workers,
) -> APIRouter:
    """The routes; templates are checked by `workers`."""
    router = APIRouter(prefix="/v1", default_response_class=JSONResponse)
    # Authenticate first: the body of an unknown caller is not read.
    Who = Annotated[Caller, Depends(authenticate)]

    async def answer(written: Written, body: dict[str, Any], where: str | None = None) -> JSONResponse:
        await propagation.wait(written.outbox_id)
        headers = {"Location": where} if where and written.created else None
        return JSONResponse(body, 201 if written.created else 200, headers)

    @router.post("/users", status_code=201, tags=["users"])
    async def create_user(request: Request, caller: Who) -> JSONResponse:
        """Create a recipient."""
        body = await read_model(request, NewUser)
        try:
            written = await store.create_user(caller.tenant, {"id": body.id, **body.fields()})
        except ExistsError as exc:
            why = "there is a user with this id; PUT replaces it"
            raise Problem(409, "conflict", why, errors=[FieldError("/id", why, "conflict")]) from exc
        return await answer(written, _user(written.row), f"/v1/users/{quote(body.id, safe='')}")

    @router.get("/users", tags=["users"])
    async def list_users(caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT) -> JSONResponse:
        """Recipients by id. A page of large ones has fewer than `limit`."""
        (after,) = read_cursor(cursor, str) or ("",)
        rows, more = await store.list_users(caller.tenant, after, limit)
        return JSONResponse(page_of(rows, more, _user, lambda row: write_cursor(row["user_id"])))

    @router.get("/users/{user_id}", tags=["users"])
    async def get_user(user_id: PathId, caller: Who) -> JSONResponse:
        """Read a recipient."""
        return JSONResponse(_user(await _or_404(store.get_user(caller.tenant, _clean(user_id)), "user")))

    @router.put("/users/{user_id}", tags=["users"])
    async def replace_user(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Replace a recipient; preferences stay."""
        body = await read_model(request, ReplacedUser)
        _same_id(body.id, user_id)
        written = await _or_404(store.replace_user(caller.tenant, _clean(user_id), body.fields()), "user")
        return await answer(written, _user(written.row))

    @router.patch("/users/{user_id}", tags=["users"])
    async def change_user(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Change fields of a user (JSON merge patch, RFC 7396): null removes a field, devices are replaced whole."""
        patch = await read_json(request, MERGE_PATCH_TYPE, JSON_TYPE)
        if not isinstance(patch, dict):
            raise Problem(400, "invalid_request", "a merge patch of a user is an object")
        _same_id(patch.get("id"), user_id)

        def changed(row: Row) -> Row:
            return check_model(ReplacedUser, merge_patch({name: row[name] for name in _FIELDS}, patch)).fields()

        written = await _or_404(store.change_user(caller.tenant, _clean(user_id), changed), "user")
        return await answer(written, _user(written.row))

    @router.delete("/users/{user_id}", status_code=204, tags=["users"])
    async def delete_user(user_id: PathId, caller: Who) -> Response:
        """Delete a recipient with the preferences."""
        written = await _or_404(store.delete_user(caller.tenant, _clean(user_id)), "user")
        await propagation.wait(written.outbox_id)
        return Response(status_code=204)

    @router.get("/users/{user_id}/preferences", tags=["users"])
    async def get_preferences(user_id: PathId, caller: Who) -> JSONResponse:
        """Read what a recipient wants."""
        return JSONResponse(await _or_404(store.get_preferences(caller.tenant, _clean(user_id)), "user"))

    @router.put("/users/{user_id}/preferences", tags=["users"])
    async def replace_preferences(user_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Replace what a recipient wants."""
        body = await read_model(request, Preferences)
        written = await _or_404(store.replace_preferences(caller.tenant, _clean(user_id), body.model_dump()), "user")
        return await answer(written, {name: written.row[name] for name in ("channels", "categories")})

    @router.post("/templates", status_code=201, tags=["templates"])
    async def create_template(request: Request, caller: Who) -> JSONResponse:
        """Create a template; refused with line and reason when a source is not in the template language."""
        body = await read_model(request, NewTemplate)
        checked = await _checked(caller.tenant, body.id, body, _fetch(store, caller.tenant), workers)
        try:
            written = await store.create_template(caller.tenant, body.id, checked, publish=body.publish)
        except ExistsError as exc:
            why = "there is a template with this id; POST .../versions adds a version"
            raise Problem(409, "conflict", why, errors=[FieldError("/id", why, "conflict")]) from exc
        templates.wrote(written.row, published=body.publish)
        return await answer(written, _template(written.row, sources=False), f"/v1/templates/{quote(body.id, safe='')}")

    @router.post("/templates/{template_id}/versions", status_code=201, tags=["templates"])
    async def add_version(template_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Add a version; versions never change."""
        body = await read_model(request, NewVersion)
        _same_id(body.id, template_id)
        checked = await _checked(caller.tenant, template_id, body, _fetch(store, caller.tenant), workers)
        adding = store.add_template_version(caller.tenant, _clean(template_id), checked, publish=body.publish)
        written = await _or_404(adding, "template")
        templates.wrote(written.row, published=body.publish)
        where = f"/v1/templates/{quote(template_id, safe='')}?version={written.row['version']}"
        return await answer(written, _template(written.row, sources=False), where)

    @router.post("/templates/{template_id}/publish", tags=["templates"])
    async def publish(template_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Publish a version, also an older one."""
        body = await read_model(request, Published)
        publishing = store.publish_template(caller.tenant, _clean(template_id), body.version)
        written = await _or_404(publishing, "template version")
        templates.wrote(written.row, published=True)
        return await answer(written, _template(written.row, sources=False))

    @router.get("/templates", tags=["templates"])
    async def list_templates(caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT) -> JSONResponse:
        """Templates by id."""
        (after,) = read_cursor(cursor, str) or ("",)
        rows = await store.list_templates(caller.tenant, after, limit + 1)
        return JSONResponse(page(rows, limit, _listed, lambda row: write_cursor(row["template_id"])))

    @router.get("/templates/{template_id}/versions", tags=["templates"])
    async def list_versions(
        template_id: PathId, caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT
    ) -> JSONResponse:
        """Versions of a template with their sources, the newest first. A page of large ones has fewer than `limit`."""
        (before,) = read_cursor(cursor, int) or (2**31 - 1,)
        rows, more = await store.list_versions(caller.tenant, _clean(template_id), min(before, 2**31 - 1), limit)
        if not rows and not cursor:
            raise _missing("template")
        return JSONResponse(page_of(rows, more, _version, lambda row: write_cursor(row["version"])))

    @router.get("/templates/{template_id}", tags=["templates"])
    async def get_template(
        template_id: PathId, caller: Who, version: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
    ) -> JSONResponse:
        """Read a version; else the published one; else the latest."""
        row = await _or_404(store.get_template(caller.tenant, _clean(template_id), version), "template")
        return JSONResponse(_template(row, sources=True))

    return router


def _clean(path_id: str) -> str:
    """An id out of the path: PostgreSQL's text takes no NUL, and no entity's id has a control character."""
    if has_control(path_id):
        raise _missing("id")
    return path_id


async def _or_404(reading: Awaitable[Any], what: str) -> Any:
    try:
        return await reading
    except NotFoundError as exc:
        raise _missing(what) from exc
