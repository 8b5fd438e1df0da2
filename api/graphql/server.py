"""Runs operations: one answer, a stream of server-sent events, or a socket's.

May import strawberry. Never: a header of a request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from starlette.types import Receive, Scope, Send
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types.execution import ExecutionResult, PreExecutionError
from strawberry.types.graphql import OperationType

from api.graphql.context import Context
from api.graphql.errors import INVALID_QUERY, NO_OPERATION
from api.graphql.guard import refusal
from api.graphql.schema import graphql_schema
from api.graphql.services import MAX_SUBSCRIPTIONS, Services
from api.graphql.socket import RESTART, Adapter, converse
from api.requests import Authenticator
from producers.reference.keys import Caller
from runtime.http.outages import Outages
from runtime.logs import get_logger
from tracking.live.hub import KEEP_ALIVE_S

log = get_logger("graphql")
REFUSED_WITHIN_S = 1.0
"""An operation that is refused before it runs is answered as one that is not streamed, when that is known so soon."""
LAST_WORDS_S = 0.2
"""Between the end of subscriptions and that of their sockets."""
_AT_ONCE = (OperationType.QUERY, OperationType.MUTATION)


class GraphqlServer:
    """One per process."""

    def __init__(self, services: Services, origins: Sequence[str]) -> None:
        self._services, self.origins = services, origins
        self._schema = graphql_schema()
        self._sockets: set[Adapter] = set()
        self._ending: asyncio.Task[None] | None = None
        self.stopping = False

    @property
    def authenticator(self) -> Authenticator:
        """Who finds callers."""
        return self._services.authenticator

    @property
    def outages(self) -> Outages:
        """What does not answer."""
        return self._services.outages

    @property
    def has_room(self) -> bool:
        """Whether one more socket may come."""
        return len(self._sockets) < MAX_SUBSCRIPTIONS

    @contextmanager
    def entered(self, adapter: Adapter) -> Iterator[None]:
        """A socket, while it lasts."""
        self._sockets.add(adapter)
        try:
            yield
        finally:
            self._sockets.discard(adapter)

    def stop(self) -> None:
        """End what goes on: subscriptions end with the hub, and their sockets right after."""
        self.stopping = True
        if self._sockets and self._ending is None:
            self._ending = asyncio.ensure_future(self._end_sockets())

    async def _end_sockets(self) -> None:
        await asyncio.sleep(LAST_WORDS_S)
        why = "this process restarts: connect again"
        await asyncio.gather(*(socket.close(RESTART, why) for socket in self._sockets))

    def context(self, caller: Caller, request_id: str, correlation_id: str, traceparent: str | None) -> Context:
        """Of one operation."""
        return Context(self._services, caller, request_id, correlation_id, traceparent)

    async def execute(self, asked: dict[str, Any], context: Context) -> tuple[int, dict[str, Any]]:
        """(HTTP status, document) of a query or mutation. Raises Problem for what is none."""
        try:
            result = await self._schema.execute(
                asked["query"],
                variable_values=asked["variables"],
                context_value=context,
                operation_name=asked["operationName"],
                allowed_operation_types=_AT_ONCE,
            )
        except InvalidOperationTypeError as exc:
            why = "a subscription goes on: send Accept: text/event-stream, or use the WebSocket"
            raise refusal("operation", why, INVALID_QUERY) from exc
        except CannotGetOperationTypeError as exc:
            raise refusal("operation", NO_OPERATION, INVALID_QUERY) from exc
        return status_of(result), document_of(result)

    async def results(
        self, query: str, variables: dict[str, Any] | None, operation_name: str | None, context: Context
    ) -> AsyncIterator[Any]:
        """The results of an operation of any kind."""
        return await self._schema.stream(
            query, variable_values=variables, context_value=context, operation_name=operation_name
        )

    async def stream(
        self, asked: dict[str, Any], context: Context, receive: Receive, send: Send
    ) -> tuple[int, Any] | None:
        """As server-sent events until it is complete or its reader goes; (status, document) where it is refused before it runs."""
        streaming = _Streaming(receive, send)
        context.cut = streaming.cut
        results: Any = await self.results(asked["query"], asked["variables"], asked["operationName"], context)
        async with aclosing(results):
            return await streaming.write(results, context.request_id)

    async def socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket."""
        await converse(self, scope, receive, send)


class _Streaming:
    """One answer that goes on."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._main = asyncio.current_task()
        self._was_cut = False

    def cut(self) -> None:
        """Its reader does not read."""
        self._was_cut = True
        if self._main is not None:
            self._main.cancel()

    async def write(self, results: Any, request_id: str) -> tuple[int, Any] | None:
        """See GraphqlServer.stream."""
        gone = asyncio.ensure_future(self._gone())
        reading: asyncio.Future[Any] = asyncio.ensure_future(anext(results, None))
        try:
            await asyncio.wait([reading, gone], timeout=REFUSED_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and isinstance(reading.result(), PreExecutionError):
                return status_of(reading.result()), document_of(reading.result())
            await self._begin(request_id)
            while not gone.done():
                await asyncio.wait([reading, gone], timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    await self._body(b"" if gone.done() else b":\n\n")
                    continue
                result = reading.result()
                if result is None:
                    await self._body(b"event: complete\ndata:\n\n", last=True)
                    return None
                await self._body(b"event: next\ndata: " + json.dumps(document_of(result)).encode() + b"\n\n")
                reading = asyncio.ensure_future(anext(results, None))
        except asyncio.CancelledError:
            if not self._was_cut:
                raise
            log.info("a stream is cut off: its reader does not read")
        finally:
            gone.cancel()
            reading.cancel()
            await asyncio.wait([reading])
        return None

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _begin(self, request_id: str) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would gather it
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._body(b":\n\n")

    async def _body(self, body: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


def document_of(result: ExecutionResult) -> dict[str, Any]:
    """What is sent of a result."""
    document: dict[str, Any] = {}
    if result.errors:
        document["errors"] = [error.formatted for error in result.errors]
    if not isinstance(result, PreExecutionError):
        document["data"] = result.data
    return document


def status_of(result: ExecutionResult) -> int:
    """200 for what was executed, with or without errors; else that of the first error."""
    refused = result.data is None and result.errors and result.errors[0].path is None
    return int((result.errors[0].extensions or {})["status"]) if refused and result.errors else 200
