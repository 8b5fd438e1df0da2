"""Templates over HTTP: their versions, and which of them is published.

May import fastapi. Never: SQL, the template language (template_check.py asks it).
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from api.caller import Authenticate, Caller
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, page, page_of, read_cursor, write_cursor
from api.path_ids import PathId
from api.reference.catalogue import TemplateCatalogue
from api.reference.responses import WriteResponses, check_same_id, clean_id, missing, or_404
from api.reference.template_check import TemplateCheck
from api.requests import read_model
from producers.notification import Category, Id, Locale, Strict
from producers.reference.store import ExistsError, ReferenceStore, Row
from runtime.http.problems import FieldError, Problem
from runtime.status import rfc3339
from runtime.templates.layouts import Written, written_form

MAX_VERSION = 2**31 - 1


class NewVersion(Strict):
    """The sources of a template. Parts by channel, and again by locale."""

    id: Id | None = None
    category: Category | None = None
    """None: that of the published version, or else of the latest."""
    channels: dict[str, Any]
    locales: Annotated[dict[Locale, dict[str, Any]], Field(max_length=100, default_factory=dict)]
    layout: Id | None = None
    publish: bool = True

    def written_as(self, name: str) -> Written:
        """As its author wrote it, under this id."""
        return Written(name, self.channels, self.locales, self.layout)


class NewTemplate(NewVersion):
    """A template with its first version."""

    id: Id
    category: Category = "default"


class Published(Strict):
    """The version that notifications take that name none."""

    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]


def _template(row: Row, *, sources: bool) -> dict[str, Any]:
    short = {
        "id": row["template_id"],
        "version": row["version"],
        "published": row["published"],
        "variables": row["variables"],
    }
    return {**short, "category": row["category"], **written_form(row)} if sources else short


def _version(row: Row) -> dict[str, Any]:
    return {**_template(row, sources=True), "created_at": rfc3339(row["created_at"])}


def _listed(row: Row) -> dict[str, Any]:
    return {
        "id": row["template_id"],
        "category": row["category"],
        "published_version": row["published_version"],
        "latest_version": row["latest_version"],
        "updated_at": rfc3339(row["updated_at"]),
    }


def templates_router(
    store: ReferenceStore,
    catalogue: TemplateCatalogue,
    check: TemplateCheck,
    responses: WriteResponses,
    authenticate: Authenticate,
) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", default_response_class=JSONResponse)
    # Authenticate first: the body of an unknown caller is not read.
    Who = Annotated[Caller, Depends(authenticate)]

    @router.post("/templates", status_code=201, tags=["templates"])
    async def create_template(request: Request, caller: Who) -> JSONResponse:
        """Create a template; refused with line and reason when a source is not in the template language."""
        body = await read_model(request, NewTemplate)
        version = await check.version(caller.tenant, body.category, body.written_as(body.id))
        try:
            written = await store.create_template(caller.tenant, body.id, version, publish=body.publish)
        except ExistsError as exc:
            why = "there is a template with this id; POST .../versions adds a version"
            raise Problem(409, "conflict", why, errors=[FieldError("/id", why, "conflict")]) from exc
        catalogue.wrote(written.row, published=body.publish)
        return await responses.written(
            written, _template(written.row, sources=False), f"/v1/templates/{quote(body.id, safe='')}"
        )

    @router.post("/templates/{template_id}/versions", status_code=201, tags=["templates"])
    async def add_version(template_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Add a version; versions never change."""
        body = await read_model(request, NewVersion)
        check_same_id(body.id, template_id)
        version = await check.version(caller.tenant, body.category, body.written_as(template_id))
        adding = store.add_template_version(caller.tenant, clean_id(template_id), version, publish=body.publish)
        written = await or_404(adding, "template")
        catalogue.wrote(written.row, published=body.publish)
        where = f"/v1/templates/{quote(template_id, safe='')}?version={written.row['version']}"
        return await responses.written(written, _template(written.row, sources=False), where)

    @router.post("/templates/{template_id}/publish", tags=["templates"])
    async def publish(template_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Publish a version, also an older one."""
        body = await read_model(request, Published)
        publishing = store.publish_template(caller.tenant, clean_id(template_id), body.version)
        written = await or_404(publishing, "template version")
        catalogue.wrote(written.row, published=True)
        return await responses.written(written, _template(written.row, sources=False))

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
        (before,) = read_cursor(cursor, int) or (MAX_VERSION,)
        rows, more = await store.list_versions(caller.tenant, clean_id(template_id), min(before, MAX_VERSION), limit)
        if not rows and not cursor:
            raise missing("template")
        return JSONResponse(page_of(rows, more, _version, lambda row: write_cursor(row["version"])))

    @router.get("/templates/{template_id}", tags=["templates"])
    async def get_template(
        template_id: PathId, caller: Who, version: Annotated[int | None, Query(ge=1, le=MAX_VERSION)] = None
    ) -> JSONResponse:
        """Read a version; else the published one; else the latest."""
        row = await or_404(store.get_template(caller.tenant, clean_id(template_id), version), "template")
        return JSONResponse(_template(row, sources=True))

    return router
