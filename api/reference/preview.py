"""POST /v1/templates/{id}/preview: what a template makes of some data.

As JSON; or, for `Accept: text/html`, as a page that shows the HTML part in a sandboxed frame: what a template's author
wrote runs no script and loads nothing, neither there nor here.
May import fastapi, producers and tracking. Never: a recipient, a send.
"""

# No `from __future__ import annotations` here: FastAPI could not see the dependency that the router is given.
import html
import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import HTMLResponse, JSONResponse, Response

from api.caller import Authenticate, Caller
from api.path_ids import PathId
from api.requests import JSON_TYPE, read_model
from processors.router.rendering import ParsedTemplate
from producers.addresses import has_control
from producers.notification import JsonObject, Locale, Strict
from producers.reference.service import missing
from producers.reference.store import NotFoundError, ReferenceStore, Row
from schemas.channels import ChannelName
from tracking.preview import Previewer

CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:50rem;padding:0 1rem}}dt{{color:#666}}
dd{{margin:0 0 1rem;white-space:pre-wrap}}iframe{{width:100%;height:36rem;border:1px solid #ccc}}</style></head>
<body><h1>{title}</h1><dl>{parts}</dl>{frame}</body></html>
"""


class PreviewRequest(Strict):
    """What to render, and with what."""

    channel: ChannelName
    locale: Locale | None = None
    data: Annotated[JsonObject, Field(default_factory=dict)]
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None


_BODY = {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": PreviewRequest.model_json_schema()}}}}


def _page(title: str, parts: Mapping[str, Any]) -> str:
    html_parts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value if isinstance(value, str) else json.dumps(value))}</dd>"
        for name, value in parts.items()
        if name != "html"
    )
    frame = f'<iframe sandbox srcdoc="{html.escape(parts["html"])}"></iframe>' if "html" in parts else ""
    return _PAGE.format(title=html.escape(title), parts=html_parts, frame=frame)


def _wants_page(request: Request) -> bool:
    """Whether text/html is asked for by name: */* gets JSON."""
    accepted = request.headers.get("accept", "").lower()
    return any(kind.partition(";")[0].strip() == "text/html" for kind in accepted.split(","))


async def render_preview(
    store: ReferenceStore, previewer: Previewer, tenant: str, template_id: str, body: PreviewRequest
) -> tuple[Row, dict[str, Any]]:
    """(the version, its parts). Raises RefusedError."""
    try:
        if has_control(template_id):
            raise NotFoundError
        row = await store.get_template(tenant, template_id, body.version)
    except NotFoundError as exc:
        raise missing("template") from exc
    template = ParsedTemplate(row["template_id"], row["version"], row["category"], row["channels"], row["locales"])
    return row, await previewer.render(tenant, template, body.channel, body.locale, body.data)


def preview_router(store: ReferenceStore, authenticate: Authenticate, previewer: Previewer) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1/templates", tags=["templates"])
    Who = Annotated[Caller, Depends(authenticate)]

    @router.post("/{template_id}/preview", openapi_extra=_BODY)
    async def preview(template_id: PathId, request: Request, caller: Who) -> Response:
        """Render a version, else the published one, else the latest. Nothing is sent."""
        body = await read_model(request, PreviewRequest)
        row, shown = await render_preview(store, previewer, caller.tenant, template_id, body)
        if _wants_page(request):
            page = _page(f"{row['template_id']} {row['version']}, {body.channel}", shown)
            return HTMLResponse(page, headers={"Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff"})
        named = {"id": row["template_id"], "version": row["version"], "channel": body.channel, "locale": body.locale}
        return JSONResponse({**named, **shown})

    return router
