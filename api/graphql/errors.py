"""Errors as GraphQL says them: REST's codes in `extensions`, and nothing of what went wrong within.

    {"message", "path", "locations", "extensions": {"code", "status", "pointer", "request_id", "errors", ...}}

May import strawberry's exceptions, graphql-core, api.errors. Never: an exception's own text unless it is written for callers.
"""

from __future__ import annotations

from typing import Any

from graphql import GraphQLError
from strawberry.schema.exceptions import CannotGetOperationTypeError

from api.errors import problem_for
from runtime.errors import MAX_ERRORS
from runtime.http.outages import Outages
from runtime.http.problems import Problem
from runtime.logs import get_logger
from runtime.metrics import REFUSED

log = get_logger("graphql")
INVALID_QUERY = "invalid_query"
MAX_MESSAGE_CHARS = 500
NO_OPERATION = "the document has no such operation"


def extensions_of(problem: Problem, request_id: str, outages: Outages) -> dict[str, Any]:
    """What programs look at."""
    said = problem.extra | {
        "code": problem.code,
        "status": problem.status,
        "pointer": problem.errors[0].pointer if problem.errors else None,
        "request_id": request_id,
    }
    if problem.errors:
        said["errors"] = [error._asdict() for error in problem.errors[:MAX_ERRORS]]
    if problem.status == 503:
        said["retry_after_s"] = outages.retry_after_s(problem.code)
    elif "Retry-After" in problem.headers:
        said["retry_after_s"] = int(problem.headers["Retry-After"])
    return said


def problem_of_error(error: GraphQLError, request_id: str) -> Problem:
    """What an error of an operation is to its caller."""
    cause = error.original_error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    if cause is None or isinstance(cause, GraphQLError):
        return Problem(400, INVALID_QUERY, error.message[:MAX_MESSAGE_CHARS])
    if isinstance(cause, CannotGetOperationTypeError):
        return Problem(400, INVALID_QUERY, NO_OPERATION)
    if (problem := problem_for(cause)) is not None:
        return problem
    log.error("an operation failed", request_id=request_id, exc_info=cause)
    return Problem(500, "internal_error", "this is our fault; see request_id")


def write_error(error: GraphQLError, request_id: str, outages: Outages) -> Problem:
    """Put into the error what its caller is told."""
    problem = problem_of_error(error, request_id)
    REFUSED.labels(problem.code).inc()
    error.message = problem.detail
    error.extensions = extensions_of(problem, request_id, outages)
    return problem


def error_document(problem: Problem, request_id: str, outages: Outages) -> dict[str, Any]:
    """The answer to a request that is not executed."""
    return {"errors": [{"message": problem.detail, "extensions": extensions_of(problem, request_id, outages)}]}
