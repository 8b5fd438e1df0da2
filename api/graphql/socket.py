"""/graphql over WebSocket: the protocol graphql-transport-ws, spoken by strawberry's handler within our limits.

    connection_init   with {"Authorization": "Bearer hg_..."} in its payload, unless the handshake had a key; within 5 s
    subscribe         20 at once; each is checked, measured and counted like a request, and its key is looked up again

    closes  4400 malformed   4401 subscribed before connection_ack   4403 no valid key, or a foreign origin   4406 another protocol
            4408 no connection_init   4409 an id that is in use   4429 too many   1012 restart

May import strawberry and starlette's types. Never: a type of the schema.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol, cast

from graphql import GraphQLError
from starlette.types import Message, Receive, Scope, Send
from strawberry.exceptions import ConnectionRejectionError
from strawberry.http.async_base_view import AsyncWebSocketAdapter
from strawberry.http.exceptions import NonJsonMessageReceived, NonTextMessageReceived
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL as PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.types.execution import ExecutionResult, PreExecutionError
from strawberry.types.unset import UNSET, UnsetType

from api.graphql.context import Context
from api.graphql.errors import write_error
from api.graphql.guard import refusal
from api.graphql.operation import read_operation
from api.live.frames import AUTH_TIMEOUT_S, FRAMES_PER_S, Allowance, is_foreign
from api.requests import Authenticator, read_headers
from api.strict_json import parse_json
from producers.reference.keys import Caller
from runtime.http.outages import Outages
from runtime.http.problems import Problem, new_request_id
from runtime.logs import get_logger
from runtime.metrics import GRAPHQL_REFUSED

log = get_logger("graphql")
MAX_OPERATIONS = 20
MAX_ID_CHARS = 64
MALFORMED, FORBIDDEN, WRONG_PROTOCOL, TOO_MANY, RESTART = 4400, 4403, 4406, 4429, 1012


class Adapter(AsyncWebSocketAdapter):
    """The connection as strawberry's handler sees it: frames that are well-formed and come slowly enough, and one close."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._allowance = Allowance()
        self._closed = asyncio.Event()

    async def iter_json(self, *, ignore_parsing_errors: bool = False) -> AsyncGenerator[object, None]:
        """Until either side closes."""
        closed = asyncio.ensure_future(self._closed.wait())
        reading: asyncio.Future[Message] | None = None
        try:
            while not self._closed.is_set():
                reading = asyncio.ensure_future(cast("Any", self._receive()))
                await asyncio.wait([reading, closed], return_when=asyncio.FIRST_COMPLETED)
                if not reading.done() or reading.result()["type"] == "websocket.disconnect":
                    return
                if not self._allowance.take():
                    GRAPHQL_REFUSED.labels("frames").inc()
                    await self.close(TOO_MANY, f"at most {FRAMES_PER_S} frames a second")
                    return
                yield await self._read(reading.result().get("text"))
        finally:
            closed.cancel()
            if reading is not None:
                reading.cancel()

    async def _read(self, text: str | None) -> dict[str, Any]:
        """A frame's value. Raises what the handler answers with a close."""
        if text is None:
            GRAPHQL_REFUSED.labels("form").inc()
            raise NonTextMessageReceived
        try:
            frame = parse_json(text.encode("utf-8", "surrogatepass"))
            if not isinstance(frame, dict) or not _is_well_formed(frame):
                raise Problem(400, "invalid_request", "not a frame of the protocol")
            if frame["type"] == "subscribe":
                frame["payload"] = read_operation(frame["payload"])
        except Problem as exc:
            GRAPHQL_REFUSED.labels("form").inc()
            raise NonJsonMessageReceived from exc
        return frame

    async def send_json(self, message: Mapping[str, object]) -> None:
        """Nothing once it is closed."""
        if self._closed.is_set():
            return
        try:
            await self._send({"type": "websocket.send", "text": json.dumps(message, separators=(",", ":"))})
        except OSError:  # the client is gone
            self._closed.set()

    async def close(self, code: int, reason: str) -> None:
        """The first reason counts."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            # A reason has 123 bytes at most.
            await self._send({"type": "websocket.close", "code": code, "reason": reason[:120]})
        except OSError:
            log.debug("a socket was gone before it was closed")


def _is_well_formed(frame: dict[str, Any]) -> bool:
    kind, name = frame.get("type"), frame.get("id")
    if kind in ("subscribe", "complete") and not (isinstance(name, str) and 0 < len(name) <= MAX_ID_CHARS):
        return False
    if kind == "subscribe":
        return isinstance(frame.get("payload"), dict)
    return isinstance(kind, str) and isinstance(frame.get("payload") or {}, dict)


class Connection:
    """What is known of a connection; strawberry's handler writes the payload of connection_init into it."""

    def __init__(self, authorization: bytes | None) -> None:
        self.authorization = authorization
        self.connection_params: dict[str, Any] | None = None
        self.request_id = new_request_id()
        self.main = asyncio.current_task()
        self.was_cut = False

    def cut(self) -> None:
        """Its reader does not read."""
        self.was_cut = True
        if self.main is not None:
            self.main.cancel()

    def given(self) -> bytes | None:
        """The key of the handshake, else of connection_init."""
        if self.authorization is not None:
            return self.authorization
        for name, value in (self.connection_params or {}).items():
            if name.lower() == "authorization" and isinstance(value, str):
                return value.encode("latin-1", "replace")
        return None


class Server(Protocol):
    """The part of GraphqlServer that is used."""

    stopping: bool

    @property
    def origins(self) -> Sequence[str]: ...
    @property
    def authenticator(self) -> Authenticator: ...
    @property
    def outages(self) -> Outages: ...
    @property
    def has_room(self) -> bool: ...
    def entered(self, adapter: Adapter) -> AbstractContextManager[None]: ...
    def context(self, caller: Caller, request_id: str, correlation_id: str, traceparent: str | None) -> Context: ...
    async def results(
        self, query: str, variables: dict[str, Any] | None, operation_name: str | None, context: Context
    ) -> AsyncIterator[Any]: ...


class _View:
    """The part of strawberry's view that its handler uses."""

    def __init__(self, server: Server, adapter: Adapter) -> None:
        self._server, self._adapter = server, adapter

    async def on_ws_connect(self, connection: Connection) -> UnsetType | dict[str, object] | None:
        """Raises ConnectionRejectionError."""
        try:
            await self._server.authenticator.caller(connection.given())
        except Problem as exc:
            if exc.status != 401:
                await self._adapter.close(TOO_MANY if exc.status == 429 else RESTART, exc.code)
            raise ConnectionRejectionError from exc
        found: UnsetType = UNSET
        return found


class _Operations:
    """The part of a schema that strawberry's handler uses: each operation has a context of its own, and a key that is valid now."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def stream(
        self,
        query: str,
        *,
        variable_values: dict[str, Any] | None,
        context_value: Connection,
        root_value: None,
        operation_name: str | None,
    ) -> AsyncIterator[ExecutionResult]:
        """The results of an operation."""
        connection = context_value
        request_id = new_request_id()
        try:
            caller = await self._server.authenticator.caller(connection.given())
        except Problem as exc:
            return self._refused(exc, request_id)
        context = self._context(caller, request_id, connection)
        return await self._server.results(query, variable_values, operation_name, context)

    def _context(self, caller: Caller, request_id: str, connection: Connection) -> Context:
        context = self._server.context(caller, request_id, request_id, None)
        context.cut = connection.cut
        return context

    async def _refused(self, problem: Problem, request_id: str) -> AsyncGenerator[ExecutionResult, None]:
        error = GraphQLError(problem.detail, original_error=problem)
        write_error(error, request_id, self._server.outages)
        yield PreExecutionError(data=None, errors=[error])


class _Handler(BaseGraphQLTransportWSHandler[Any, None]):
    async def handle_subscribe(self, message: Any) -> None:
        """As strawberry's, with an error that has a code."""
        if self.connection_acknowledged and len(self.operations) >= MAX_OPERATIONS:
            why = f"at most {MAX_OPERATIONS} operations at once on a connection"
            problem = refusal("subscriptions", why, "too_many_watchers", 429)
            error = {"message": why, "extensions": {"code": problem.code, "status": problem.status, "pointer": None}}
            await self.send_message(cast("Any", {"id": message["id"], "type": "error", "payload": [error]}))
            return
        await super().handle_subscribe(message)


async def converse(server: Server, scope: Scope, receive: Receive, send: Send) -> None:
    """One connection, from its handshake to its end."""
    await receive()  # websocket.connect
    offered = PROTOCOL in scope.get("subprotocols", ())
    await send({"type": "websocket.accept", "subprotocol": PROTOCOL if offered else None})
    adapter = Adapter(receive, send)
    try:
        headers = read_headers(scope)
    except Problem as exc:
        await adapter.close(MALFORMED, exc.detail)
        return
    if not offered:
        await adapter.close(WRONG_PROTOCOL, f"offer the subprotocol {PROTOCOL}")
    elif is_foreign(headers, server.origins):
        await adapter.close(FORBIDDEN, "this origin is not among HELIOGRAPH_LIVE__ALLOWED_ORIGINS")
    elif server.stopping:
        await adapter.close(RESTART, "this process restarts: connect again")
    elif not server.has_room:
        GRAPHQL_REFUSED.labels("subscriptions").inc()
        await adapter.close(TOO_MANY, "this process has as many connections as it may: try another")
    else:
        await _handle(server, adapter, Connection(headers.get(b"authorization")))


async def _handle(server: Server, adapter: Adapter, connection: Connection) -> None:
    handler = _Handler(
        view=cast("Any", _View(server, adapter)),
        websocket=adapter,
        context=connection,
        root_value=None,
        schema=cast("Any", _Operations(server)),
        connection_init_wait_timeout=timedelta(seconds=AUTH_TIMEOUT_S),
    )
    with server.entered(adapter):
        try:
            await handler.handle()
        except asyncio.CancelledError:
            if not connection.was_cut:
                raise
            log.info("a socket is cut off: its reader does not read")
