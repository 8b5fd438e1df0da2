"""Users, preferences, templates, suppressions over HTTP.

An answer to a write waits, up to a second, until the relay has published it: a notification sent right after it meets
routers that know.
May import fastapi. What never enters here: SQL.
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from producers.addresses import NORMAL_FORMS, device_token, display_name
from producers.http.problems import FieldError, Problem
from producers.http.requests import Authenticator, read_model
from producers.http.templates import TemplateCatalogue
from producers.notification import (
    Category,
    Channel,
    Email,
    Id,
    JsonObject,
    Line,
    Locale,
    Phone,
    Strict,
    UserId,
)
from producers.reference.keys import Caller
from producers.reference.store import ExistsError, NotFoundError, ReferenceStore, Row, Written
from runtime.errors import UnavailableError
from runtime.status import rfc3339
from runtime.templating import TemplateRefused, check_template

PUBLISH_WAIT_S = 1.0
_POLL_S = 0.005
_GIVE_UP_S = 10.0


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _time_zone(text: str) -> str:
    if text not in _time_zones():
        raise ValueError("not an IANA time zone, like Europe/Berlin")
    return text


class Device(Strict):
    """A device that takes pushes: fcm and apns have a token, webpush a subscription."""

    platform: Literal["fcm", "apns", "webpush"]
    token: Annotated[str, AfterValidator(device_token)] | None = None
    subscription: JsonObject | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        wanted, other = (
            (self.subscription, self.token) if self.platform == "webpush" else (self.token, self.subscription)
        )
        if wanted is None or other is not None:
            raise PydanticCustomError("device", "fcm and apns take a token, webpush takes a subscription")
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


class NewUser(UserFields):
    """A recipient."""

    id: UserId


class ReplacedUser(UserFields):
    """A recipient; the id is the path's."""

    id: UserId | None = None


_Choices = dict[Channel, bool]


class Preferences(Strict):
    """What a recipient wants; what is not said is wanted."""

    channels: Annotated[_Choices, Field(default_factory=dict)]
    categories: Annotated[dict[Category, _Choices], Field(max_length=200, default_factory=dict)]


class NewVersion(Strict):
    """The sources of a template. Parts by channel, and again by locale."""

    id: Id | None = None
    category: Category = "default"
    channels: dict[str, Any]
    locales: Annotated[dict[Locale, dict[str, Any]], Field(max_length=100, default_factory=dict)]
    publish: bool = True


class NewTemplate(NewVersion):
    """A template with its first version."""

    id: Id


class Published(Strict):
    """The version that notifications take that name none."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)]


class NewSuppression(Strict):
    """An address that must not be sent to."""

    channel: Channel
    address: Annotated[str, Field(max_length=4096)]
    reason: Annotated[Line, Field(min_length=1, max_length=64)] = "manual"

    @model_validator(mode="after")
    def _normal(self) -> Self:
        NORMAL_FORMS[self.channel](self.address)
        return self


class Propagation:
    """Waits until the relay has published outbox rows; one look at PostgreSQL serves all who wait."""

    def __init__(self, unpublished: Callable[[list[int]], Awaitable[set[int]]]) -> None:
        self._unpublished = unpublished
        self._waiting: dict[int, asyncio.Event] = {}
        self._looking: asyncio.Task[None] | None = None
        self._tired_until = 0.0

    async def wait(self, outbox_id: int | None) -> None:
        """Return when the row is published, or after a second: the write is done in any case."""
        if outbox_id is None or time.monotonic() < self._tired_until:
            return
        done = self._waiting.setdefault(outbox_id, asyncio.Event())
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(PUBLISH_WAIT_S):
                await done.wait()
        except TimeoutError:
            self._tired_until = time.monotonic() + _GIVE_UP_S  # the relay is down: do not slow every write
        finally:
            self._waiting.pop(outbox_id, None)

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(_POLL_S)
            try:
                left = await self._unpublished(list(self._waiting))
            except UnavailableError:
                return
            for outbox_id, done in self._waiting.items():
                if outbox_id not in left:
                    done.set()


BODIES = (NewUser, ReplacedUser, Preferences, NewTemplate, NewVersion, Published, NewSuppression)


def _document(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a body that the route reads itself."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}},
        }
    }


def _found(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"$ref": "#/components/responses/Problem"} for code in codes}


def _iso(milliseconds: int) -> str:
    return rfc3339(milliseconds)


def _user(row: Row) -> dict[str, Any]:
    names = ("name", "email", "phone", "locale", "time_zone", "devices")
    times = {name: _iso(row[name]) for name in ("created_at", "updated_at")}
    return {"id": row["user_id"], **{name: row[name] for name in names}, **times}


def _template(row: Row, *, sources: bool) -> dict[str, Any]:
    short = {
        "id": row["template_id"],
        "version": row["version"],
        "published": row["published"],
        "variables": row["variables"],
    }
    return {**short, **{name: row[name] for name in ("category", "channels", "locales")}} if sources else short


def _suppression(row: Row) -> dict[str, Any]:
    return {
        "id": str(row["suppression_id"]),
        **{name: row[name] for name in ("channel", "address", "reason")},
        "created_at": _iso(row["created_at"]),
    }


def _checked(body: NewVersion) -> Row:
    """The template with its required variables. Raises Problem: 400 template_invalid with line and reason."""
    try:
        variables = check_template(body.channels, body.locales)
        if any("\0" in path for path in variables):
            raise TemplateRefused("a name holds a NUL character", where="channels")
    except TemplateRefused as exc:
        raise Problem(
            400, "template_invalid", str(exc), errors=[FieldError(_pointer(exc.where), exc.reason, "template_invalid")],
            extra={"line": exc.line, "reason": exc.reason, "where": exc.where},
        ) from exc  # fmt: skip
    return {"category": body.category, "channels": body.channels, "locales": body.locales, "variables": variables}


def _pointer(where: str) -> str:
    """email.html → /channels/email/html, de.sms.text → /locales/de/sms/text."""
    parts = where.split(".")
    if parts[0] in ("channels", "template"):
        return "/channels"
    return "/" + "/".join(["channels", *parts] if parts[0] in NORMAL_FORMS else ["locales", *parts])


def _same_id(body_id: str | None, path_id: str) -> None:
    if body_id is not None and body_id != path_id:
        why = "id differs from the one in the path"
        raise Problem(400, "invalid_request", why, errors=[FieldError("/id", why, "invalid_value")])


def _missing(what: str) -> Problem:
    return Problem(404, "not_found", f"there is no such {what}")


def reference_router(
    store: ReferenceStore, templates: TemplateCatalogue, propagation: Propagation, authenticate: Authenticator
) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", responses=_found(400, 401, 503), default_response_class=JSONResponse)
    # The caller comes first: nothing of a stranger's body is read.
    Who = Annotated[Caller, Depends(authenticate)]

    async def answer(written: Written, body: dict[str, Any], where: str | None = None) -> JSONResponse:
        await propagation.wait(written.outbox_id)
        headers = {"Location": where} if where and written.created else None
        return JSONResponse(body, 201 if written.created else 200, headers)

    @router.post("/users", status_code=201, tags=["users"], responses=_found(409), openapi_extra=_document(NewUser))
    async def create_user(request: Request, caller: Who) -> JSONResponse:
        """Create a recipient."""
        body = await read_model(request, NewUser)
        try:
            written = await store.create_user(caller.tenant, {"id": body.id, **body.fields()})
        except ExistsError as exc:
            why = "there is a user with this id; PUT replaces it"
            raise Problem(409, "conflict", why, errors=[FieldError("/id", why, "conflict")]) from exc
        return await answer(written, _user(written.row), f"/v1/users/{body.id}")

    @router.get("/users/{user_id}", tags=["users"], responses=_found(404))
    async def get_user(user_id: str, caller: Who) -> JSONResponse:
        """Read a recipient."""
        return JSONResponse(_user(await _or_404(store.get_user(caller.tenant, _clean(user_id)), "user")))

    @router.put("/users/{user_id}", tags=["users"], responses=_found(404), openapi_extra=_document(ReplacedUser))
    async def replace_user(user_id: str, request: Request, caller: Who) -> JSONResponse:
        """Replace a recipient; preferences stay."""
        body = await read_model(request, ReplacedUser)
        _same_id(body.id, user_id)
        written = await _or_404(store.replace_user(caller.tenant, _clean(user_id), body.fields()), "user")
        return await answer(written, _user(written.row))

    @router.get("/users/{user_id}/preferences", tags=["users"], responses=_found(404))
    async def get_preferences(user_id: str, caller: Who) -> JSONResponse:
        """Read what a recipient wants."""
        return JSONResponse(await _or_404(store.get_preferences(caller.tenant, _clean(user_id)), "user"))

    @router.put(
        "/users/{user_id}/preferences", tags=["users"], responses=_found(404), openapi_extra=_document(Preferences)
    )
    async def replace_preferences(user_id: str, request: Request, caller: Who) -> JSONResponse:
        """Replace what a recipient wants."""
        body = await read_model(request, Preferences)
        written = await _or_404(
            store.replace_preferences(caller.tenant, _clean(user_id), body.model_dump()), "user"
        )  # fmt: skip
        return await answer(written, {name: written.row[name] for name in ("channels", "categories")})

    @router.post(
        "/templates", status_code=201, tags=["templates"], responses=_found(409), openapi_extra=_document(NewTemplate)
    )
    async def create_template(request: Request, caller: Who) -> JSONResponse:
        """Create a template; refused with line and reason when a source is not in the template language."""
        body = await read_model(request, NewTemplate)
        try:
            written = await store.create_template(caller.tenant, body.id, _checked(body), publish=body.publish)
        except ExistsError as exc:
            why = "there is a template with this id; POST .../versions adds a version"
            raise Problem(409, "conflict", why, errors=[FieldError("/id", why, "conflict")]) from exc
        templates.wrote(written.row, published=body.publish)
        return await answer(written, _template(written.row, sources=False), f"/v1/templates/{body.id}")

    @router.post(
        "/templates/{template_id}/versions", status_code=201, tags=["templates"], responses=_found(404),
        openapi_extra=_document(NewVersion),
    )  # fmt: skip
    async def add_version(template_id: str, request: Request, caller: Who) -> JSONResponse:
        """Add a version; versions never change."""
        body = await read_model(request, NewVersion)
        _same_id(body.id, template_id)
        adding = store.add_template_version(caller.tenant, _clean(template_id), _checked(body), publish=body.publish)
        written = await _or_404(adding, "template")
        templates.wrote(written.row, published=body.publish)
        where = f"/v1/templates/{template_id}?version={written.row['version']}"
        return await answer(written, _template(written.row, sources=False), where)

    @router.post(
        "/templates/{template_id}/publish",
        tags=["templates"],
        responses=_found(404),
        openapi_extra=_document(Published),
    )
    async def publish(template_id: str, request: Request, caller: Who) -> JSONResponse:
        """Publish a version, also an older one."""
        body = await read_model(request, Published)
        publishing = store.publish_template(caller.tenant, _clean(template_id), body.version)
        written = await _or_404(publishing, "template version")
        templates.wrote(written.row, published=True)
        return await answer(written, _template(written.row, sources=False))

    @router.get("/templates/{template_id}", tags=["templates"], responses=_found(404))
    async def get_template(
        template_id: str, caller: Who, version: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
    ) -> JSONResponse:
        """Read a version; else the published one; else the latest."""
        row = await _or_404(store.get_template(caller.tenant, _clean(template_id), version), "template")
        return JSONResponse(_template(row, sources=True))

    @router.post("/suppressions", status_code=201, tags=["suppressions"], openapi_extra=_document(NewSuppression))
    async def suppress(request: Request, caller: Who) -> JSONResponse:
        """Never send to an address; 200 when it was suppressed already."""
        body = await read_model(request, NewSuppression)
        address = NORMAL_FORMS[body.channel](body.address)
        written = await store.suppress(caller.tenant, body.channel, address, body.reason)
        return await answer(written, _suppression(written.row))

    @router.get("/suppressions", tags=["suppressions"])
    async def list_suppressions(caller: Who) -> JSONResponse:
        """The newest suppressions."""
        rows = await store.list_suppressions(caller.tenant)
        return JSONResponse({"entries": [_suppression(row) for row in rows], "next_cursor": None})

    return router


def _clean(path_id: str) -> str:
    """An id out of the path: PostgreSQL's text takes no NUL, and no entity's id has one."""
    if "\0" in path_id or not path_id.isprintable():
        raise _missing("id")
    return path_id


async def _or_404(reading: Awaitable[Any], what: str) -> Any:
    try:
        return await reading
    except NotFoundError as exc:
        raise _missing(what) from exc
