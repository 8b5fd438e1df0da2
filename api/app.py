"""The ASGI application: ingest in front, FastAPI for the rest.

    create_app(deps, extra_routes=[...])   deps are made by api/role.py, extra routes are those of api/notifications

May import fastapi and starlette. Never: settings, the lifetime of a client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api.docs_page import CSP, docs_page
from api.errors import problem_for
from api.ingest import BULK_PATH, PATH, Ingest
from api.openapi import describe
from api.path_ids import keep_slashes
from api.reference.preferences import preferences_router
from api.reference.suppressions import suppressions_router
from api.reference.templates import templates_router
from api.reference.users import users_router
from api.requests import Authenticator
from producers.reference.database import InputRefused
from producers.reference.service import ReferenceService
from producers.reference.store import ReferenceStore
from runtime import wording
from runtime.errors import FieldError, UnavailableError
from runtime.health import Health
from runtime.http.outages import Outages
from runtime.http.problems import PROBLEM_HANDLERS, Handler, Problem, problem_response
from runtime.logs import get_logger
from schemas.codec import RecordTooLarge

log = get_logger("http")


@dataclass(frozen=True, slots=True)
class Deps:
    """What the application works with."""

    ingest: Ingest
    authenticator: Authenticator
    store: ReferenceStore
    reference: ReferenceService
    health: Health
    live: Mapping[str, ASGIApp] = field(default_factory=dict)
    """Endpoints that go around the framework as ingest does, by path: their answers go on."""


async def _on_wrong_parameter(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    errors = [
        FieldError("", f"{'.'.join(map(str, e['loc']))}: {wording.describe(e)}", "invalid_parameter")
        for e in exc.errors()
    ]
    return problem_response(Problem(400, "invalid_request", errors[0].detail, errors=errors))


def _on_unavailable(outages: Outages) -> Handler:
    """The handler for a store that does not answer."""

    async def answer(_: Request, exc: Exception) -> Response:
        problem = _known(exc)
        problem.headers["Retry-After"] = str(outages.retry_after_s(problem.code))
        return problem_response(problem)

    return answer


async def _on_refused(_: Request, exc: Exception) -> Response:
    log.warning("an input is refused late", error=str(exc))
    return problem_response(_known(exc))


def _known(exc: Exception) -> Problem:
    problem = problem_for(exc)
    assert problem is not None, exc
    return problem


def handlers() -> dict[int | type[Exception], Handler]:
    """What is answered when a route raises; made anew for each application, since it remembers outages."""
    return {
        **PROBLEM_HANDLERS,
        RequestValidationError: _on_wrong_parameter,
        UnavailableError: _on_unavailable(Outages()),
        InputRefused: _on_refused,
        RecordTooLarge: _on_refused,
    }


def _health_router(health: Health) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/livez")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @router.get("/readyz")
    @router.get("/health")
    async def readyz() -> JSONResponse:
        reason = health.not_ready()
        notes = {"degraded": found} if (found := health.degraded()) else {}
        if reason is None:
            return JSONResponse({"status": "ready", **notes})
        return JSONResponse({"status": "not_ready", "reason": reason, **notes}, 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router


def _reference_routers(deps: Deps) -> list[APIRouter]:
    service, who = deps.reference, deps.authenticator
    return [
        users_router(service, who),
        preferences_router(service, who),
        templates_router(service, who),
        suppressions_router(service, deps.store, who),
    ]


def create_app(deps: Deps, extra_routes: Sequence[APIRouter | BaseRoute] = ()) -> ASGIApp:
    """The application. Extra routes may raise Problem, and may depend on `deps.authenticator`."""
    app = FastAPI(
        title="Heliograph",
        version=version("heliograph"),
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        exception_handlers=handlers(),
        redirect_slashes=False,
        description="Notifications: nothing accepted is lost, nothing is sent twice without a recorded reason.",
    )
    app.include_router(_health_router(deps.health))
    for extra in extra_routes:
        if isinstance(extra, APIRouter):
            app.include_router(extra)
        else:
            app.router.routes.append(extra)
    for router in _reference_routers(deps):
        app.include_router(router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]

    async def docs(_: Request) -> Response:
        return HTMLResponse(docs_page(app.openapi()), headers={"Content-Security-Policy": CSP})

    async def root(_: Request) -> Response:
        return RedirectResponse("/docs", 307)

    app.router.routes += [Route("/docs", docs), Route("/", root)]

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # The hot path goes around the router and its middleware.
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in (PATH, BULK_PATH):
            await deps.ingest(scope, receive, send)
        elif (endpoint := deps.live.get(scope.get("path", ""))) is not None:
            await endpoint(scope, receive, send)
        else:
            await app(keep_slashes(scope), receive, send)

    return serve


def _described(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(app)
    return app.openapi_schema
