"""Templates over HTTP: their versions, and which of them is published.

May import fastapi. Never: SQL, a rule of the data (producers/reference/service.py).
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from api.caller import Authenticate, Caller
from api.pagination import DEFAULT_LIMIT, Cursor, Limit, page_of, read_cursor, write_cursor
from api.path_ids import PathId
from api.reference.responses import done
from api.requests import read_model
from producers.reference.inputs import MAX_VERSION, NewTemplate, NewVersion, Published
from producers.reference.service import ReferenceService, show_listed_template, show_version


def templates_router(service: ReferenceService, authenticate: Authenticate) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", default_response_class=JSONResponse)
    # Authenticate first: the body of an unknown caller is not read.
    Who = Annotated[Caller, Depends(authenticate)]

    @router.post("/templates", status_code=201, tags=["templates"])
    async def create_template(request: Request, caller: Who) -> JSONResponse:
        """Create a template; refused with line and reason when a source is not in the template language."""
        body = await read_model(request, NewTemplate)
        written = await service.create_template(caller.tenant, body)
        return done(written, f"/v1/templates/{quote(body.id, safe='')}")

    @router.post("/templates/{template_id}/versions", status_code=201, tags=["templates"])
    async def add_version(template_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Add a version; versions never change."""
        body = await read_model(request, NewVersion)
        written = await service.add_version(caller.tenant, template_id, body)
        return done(written, f"/v1/templates/{quote(template_id, safe='')}?version={written.body['version']}")

    @router.post("/templates/{template_id}/publish", tags=["templates"])
    async def publish(template_id: PathId, request: Request, caller: Who) -> JSONResponse:
        """Publish a version, also an older one."""
        body = await read_model(request, Published)
        return done(await service.publish_template(caller.tenant, template_id, body.version))

    @router.get("/templates", tags=["templates"])
    async def list_templates(caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT) -> JSONResponse:
        """Templates by id."""
        (after,) = read_cursor(cursor, str) or ("",)
        rows, more = await service.list_templates(caller.tenant, after, limit)
        return JSONResponse(page_of(rows, more, show_listed_template, lambda row: write_cursor(row["template_id"])))

    @router.get("/templates/{template_id}/versions", tags=["templates"])
    async def list_versions(
        template_id: PathId, caller: Who, cursor: Cursor = "", limit: Limit = DEFAULT_LIMIT
    ) -> JSONResponse:
        """Versions of a template with their sources, the newest first. A page of large ones has fewer than `limit`."""
        (before,) = read_cursor(cursor, int) or (None,)
        rows, more = await service.list_versions(caller.tenant, template_id, before, limit)
        return JSONResponse(page_of(rows, more, show_version, lambda row: write_cursor(row["version"])))

    @router.get("/templates/{template_id}", tags=["templates"])
    async def get_template(
        template_id: PathId, caller: Who, version: Annotated[int | None, Query(ge=1, le=MAX_VERSION)] = None
    ) -> JSONResponse:
        """Read a version; else the published one; else the latest."""
        return JSONResponse(await service.template(caller.tenant, template_id, version))

    return router
