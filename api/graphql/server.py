"""Runs operations: one answer, a stream of server-sent events, or a socket's.

May import strawberry. Never: who is calling, a header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types.execution import ExecutionResult, PreExecutionError
from strawberry.types.graphql import OperationType

from api.graphql.context import Context
from api.graphql.guard import refusal
from api.graphql.schema import graphql_schema
from api.graphql.services import Services
from producers.reference.keys import Caller

_AT_ONCE = (OperationType.QUERY, OperationType.MUTATION)


class GraphqlServer:
    """One per process."""

    def __init__(self, services: Services, origins: Sequence[str]) -> None:
        self._services, self._origins = services, origins
        self._schema = graphql_schema()

    def stop(self) -> None:
        """End what goes on."""

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
            raise refusal("operation", why, "invalid_query") from exc
        except CannotGetOperationTypeError as exc:
            raise refusal("operation", "the document has no such operation", "invalid_query") from exc
        return _status(result), document_of(result)

    async def stream(self, asked: dict[str, Any], context: Context, receive: Receive, send: Send) -> None:
        """As server-sent events, until it is complete or its reader goes."""
        raise refusal("operation", "there are no subscriptions yet", "invalid_query")

    async def socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket."""
        await receive()
        await send({"type": "websocket.close", "code": 4400})


def document_of(result: ExecutionResult) -> dict[str, Any]:
    """What is sent of a result."""
    document: dict[str, Any] = {}
    if result.errors:
        document["errors"] = [error.formatted for error in result.errors]
    if not isinstance(result, PreExecutionError):
        document["data"] = result.data
    return document


def _status(result: ExecutionResult) -> int:
    """200 for what was executed, with or without errors; else that of the first error."""
    refused = result.data is None and result.errors and result.errors[0].path is None
    return int((result.errors[0].extensions or {})["status"]) if refused and result.errors else 200
