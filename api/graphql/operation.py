"""An operation as a request or a frame carries it.

May import the problems of HTTP. Never: strawberry.
"""

from __future__ import annotations

from typing import Any

from runtime.http.problems import Problem
from runtime.metrics import GRAPHQL_REFUSED

_KNOWN = frozenset({"query", "variables", "operationName", "extensions"})


def read_operation(body: Any) -> dict[str, Any]:
    """{"query", "variables", "operationName"} of a request's body. Raises Problem."""
    if isinstance(body, list):
        GRAPHQL_REFUSED.labels("batch").inc()
        raise Problem(400, "invalid_request", "several operations in one request are not taken: send one by one")
    shapes = {"query": str, "variables": dict | None, "operationName": str | None}
    if not isinstance(body, dict) or body.keys() - _KNOWN or not body.get("query"):
        raise Problem(
            400, "invalid_request", "the body is an object with query, and variables and operationName if any"
        )
    for name, shape in shapes.items():
        if not isinstance(body.get(name), shape):
            raise Problem(400, "invalid_request", f"{name} is of another type than GraphQL over HTTP has it")
    return {name: body.get(name) for name in shapes}
