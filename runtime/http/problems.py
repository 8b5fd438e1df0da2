"""Errors as callers see them: RFC 9457 problem documents with `code`, `errors[].pointer` and `request_id`.

May import starlette. Never: what a caller sent (pointers name fields, details never quote values).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from runtime.errors import MAX_ERRORS, FieldError, Refusal, RefusedError
from runtime.json_pointer import MAX_POINTER_CHARS
from runtime.logs import get_logger
from runtime.metrics import REFUSED

log = get_logger("http")


class Problem(Exception):
    """The answer is an error. `code` is what programs look at, `detail` is for people."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def moved(self, move: Callable[[str], str]) -> Problem:
        """The same problem with its pointers moved, for a body that is a part of a larger one."""
        errors = [error._replace(pointer=move(error.pointer)[:MAX_POINTER_CHARS]) for error in self.errors]
        return Problem(
            self.status,
            self.code,
            self.detail,
            errors=errors or [FieldError(move(""), self.detail, self.code)],
            headers=self.headers,
            extra=self.extra,
        )

    def document(self, request_id: str) -> dict[str, Any]:
        """The problem document."""
        return {
            "type": f"urn:heliograph:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "errors": [error._asdict() for error in self.errors[:MAX_ERRORS]],
            "request_id": request_id,
            **self.extra,
        }

    def body(self, request_id: str) -> bytes:
        """The problem document as an answer's body."""
        return json.dumps(self.document(request_id)).encode()


def unavailable(code: str, detail: str, retry_after_s: int = 1) -> Problem:
    """503: nothing is promised, the same request may be sent again."""
    return Problem(503, code, detail, headers={"Retry-After": str(retry_after_s)})


def new_request_id() -> str:
    """Names one HTTP request."""
    return os.urandom(12).hex()


def problem_response(problem: Problem, request_id: str | None = None) -> Response:
    """The answer for frameworks that want a response object."""
    REFUSED.labels(problem.code).inc()
    request_id = request_id or new_request_id()
    headers = {"X-Request-ID": request_id, **problem.headers}
    return Response(problem.body(request_id), problem.status, headers, "application/problem+json")


_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}


async def _on_problem(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, Problem)
    return problem_response(exc)


STATUS_OF: Mapping[Refusal, int] = {
    Refusal.INVALID: 400,
    Refusal.UNKNOWN: 404,
    Refusal.CONFLICT: 409,
    Refusal.TOO_MANY: 429,
    Refusal.BROKEN: 500,
    Refusal.BUSY: 503,
}
"""What every face answers to a refusal, by its kind."""


def problem_of(exc: RefusedError) -> Problem:
    """A refusal as HTTP says it."""
    headers = {"Retry-After": "1"} if exc.kind in (Refusal.BUSY, Refusal.TOO_MANY) else {}
    return Problem(STATUS_OF[exc.kind], exc.code, str(exc), errors=exc.errors, headers=headers, extra=exc.extra)


async def _on_refused(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RefusedError)
    return problem_response(problem_of(exc))


async def _on_http_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    code = _STATUS_CODES.get(exc.status_code, "http_error")
    return problem_response(Problem(exc.status_code, code, exc.detail, headers=exc.headers or {}))


def bug_response(path: str, exc: Exception) -> Response:
    """The answer to a request whose handling failed for a reason of ours, which is logged."""
    request_id = new_request_id()
    log.error("request failed", path=path, request_id=request_id, exc_info=exc)
    return problem_response(Problem(500, "internal_error", "this is our fault; see request_id"), request_id)


async def _on_bug(request: Request, exc: Exception) -> Response:
    return bug_response(request.url.path, exc)


Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]

PROBLEM_HANDLERS: Mapping[int | type[Exception], Handler] = {
    Problem: _on_problem,
    RefusedError: _on_refused,
    HTTPException: _on_http_error,
    Exception: _on_bug,
}
"""What every application of the project answers when an endpoint raises."""
