"""/graphql: one operation per request as JSON, or as server-sent events for who accepts them; GraphQL's own socket beside it.

    POST, Content-Type: application/json                              {"data", "errors"}: 200 once it is executed, else its error's status
    POST, Accept: text/event-stream                                   graphql-sse, distinct connections: `next` … `complete`
    WebSocket, subprotocol graphql-transport-ws                       socket.py

Nothing of GraphQL is imported before the first call.
May import starlette's types and api.requests. Never: strawberry at import.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.types import Receive, Scope, Send

from api.errors import problem_for
from api.graphql.operation import read_operation
from api.graphql.services import Services
from api.requests import (
    check_form,
    correlation_id_of,
    read_body,
    read_headers,
    traceparent_of,
)
from api.strict_json import parse_json
from runtime.errors import HeliographError
from runtime.http.outages import Outages
from runtime.http.problems import Problem, new_request_id
from runtime.logs import get_logger
from runtime.metrics import GRAPHQL_REFUSED, REFUSED

if TYPE_CHECKING:
    from api.graphql.server import GraphqlServer

log = get_logger("graphql")
PATH = "/graphql"
SDL_PATH = "/graphql/schema.graphql"
_JSON = b"application/json; charset=utf-8"
_RESPONSE_JSON = b"application/graphql-response+json; charset=utf-8"


class GraphqlEndpoint:
    """The ASGI endpoint of both paths."""

    def __init__(self, services: Services, origins: Sequence[str]) -> None:
        self._services, self._origins = services, origins
        self._server: GraphqlServer | None = None
        self._loading: asyncio.Task[GraphqlServer] | None = None
        self._stopping = False

    def stop(self) -> None:
        """End what goes on; later ones end when they begin."""
        self._stopping = True
        if self._server is not None:
            self._server.stop()

    async def _loaded(self) -> GraphqlServer:
        """The schema, built on a thread the first time: other callers do not wait for it."""
        if self._server is None:
            if self._loading is None:
                self._loading = asyncio.ensure_future(self._load())
            self._server = await asyncio.shield(self._loading)
        return self._server

    async def _load(self) -> GraphqlServer:
        def build() -> GraphqlServer:
            from api.graphql.server import GraphqlServer

            return GraphqlServer(self._services, self._origins)

        server = await asyncio.to_thread(build)
        if self._stopping:
            server.stop()
        return server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await (await self._loaded()).socket(scope, receive, send)
            return
        request_id = new_request_id()
        try:
            if scope["path"] == SDL_PATH:
                await self._answer_sdl(scope, send)
            else:
                await self._answer(scope, receive, send, request_id)
        except (Problem, HeliographError) as exc:
            if (problem := problem_for(exc)) is None:
                raise
            REFUSED.labels(problem.code).inc()
            await _refuse(problem, request_id, self._services.outages, send)

    async def _answer_sdl(self, scope: Scope, send: Send) -> None:
        from api.graphql.sdl import committed_sdl

        if scope["method"] not in ("GET", "HEAD"):
            raise Problem(405, "method_not_allowed", "the schema is read with GET", headers={"Allow": "GET"})
        body = committed_sdl().encode() if scope["method"] == "GET" else b""
        await _send(send, 200, b"text/plain; charset=utf-8", body)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        if scope["method"] != "POST":
            GRAPHQL_REFUSED.labels("method").inc()
            raise Problem(405, "method_not_allowed", "an operation is sent with POST", headers={"Allow": "POST"})
        headers = read_headers(scope)
        caller = await self._services.authenticator.caller(headers.get(b"authorization"))
        try:
            check_form(headers)
            raw = await read_body(receive)
        except Problem as exc:
            GRAPHQL_REFUSED.labels("size" if exc.status == 413 else "form").inc()
            raise
        asked = read_operation(parse_json(raw))
        server = await self._loaded()
        context = server.context(caller, request_id, correlation_id_of(headers) or request_id, traceparent_of(headers))
        if b"text/event-stream" in headers.get(b"accept", b""):
            refused = await server.stream(asked, context, receive, send)
            if refused is None:
                return
            status, document = refused
        else:
            status, document = await server.execute(asked, context)
        kind = _RESPONSE_JSON if b"application/graphql-response+json" in headers.get(b"accept", b"") else _JSON
        await _send(send, status, kind, json.dumps(document).encode(), request_id)


async def _refuse(problem: Problem, request_id: str, outages: Outages, send: Send) -> None:
    from api.graphql.errors import error_document

    document = error_document(problem, request_id, outages)
    if "retry_after_s" in document["errors"][0]["extensions"]:
        problem.headers["Retry-After"] = str(document["errors"][0]["extensions"]["retry_after_s"])
    await _send(send, problem.status, _JSON, json.dumps(document).encode(), request_id, problem.headers)


async def _send(
    send: Send, status: int, kind: bytes, body: bytes, request_id: str = "", more: dict[str, str] | None = None
) -> None:
    headers: list[tuple[bytes, bytes]] = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if request_id:
        headers.append((b"x-request-id", request_id.encode()))
    headers += [(name.lower().encode(), value.encode()) for name, value in (more or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
