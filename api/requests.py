"""What every route does first: who is calling, how large may the body be, in which form is it.

May import starlette. Never: a route.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from api.rate_limit import RateLimiter
from api.strict_json import parse_json
from producers.checking import Model, check_model
from producers.notification import TRACEPARENT
from producers.reference.keys import Caller, Keys
from runtime.errors import FieldError, UnavailableError
from runtime.http.problems import Problem, unavailable

MAX_BODY_BYTES = 262_144
MAX_CORRELATION_CHARS = 128
BODY_TIMEOUT_S = 30.0
JSON_TYPE = "application/json"
MERGE_PATCH_TYPE = "application/merge-patch+json"
_TYPE = re.compile(rb'([\w.+-]+/[\w.+-]+)\s*(?:;\s*charset\s*=\s*"?utf-8"?\s*)?', re.IGNORECASE | re.ASCII)
Headers = dict[bytes, bytes]

_SINGLE = frozenset({b"authorization", b"content-type", b"content-length", b"idempotency-key", b"x-correlation-id"})


def read_headers(scope: Scope) -> Headers:
    """Headers by lower-case name. Raises Problem when a header that matters is repeated."""
    headers: Headers = {}
    for name, value in scope["headers"]:
        if name in headers and name in _SINGLE and headers[name] != value:
            raise Problem(400, "invalid_header", f"{name.decode('latin-1')} is given twice with different values")
        headers[name] = value
    return headers


def correlation_id_of(headers: Headers) -> str | None:
    """What the caller calls this; None when it does not say. Raises Problem (400)."""
    raw = headers.get(b"x-correlation-id")
    if raw is None or raw == b"":
        return None
    if len(raw) > MAX_CORRELATION_CHARS or not all(0x21 <= byte <= 0x7E for byte in raw):
        raise Problem(
            400, "invalid_header", f"X-Correlation-ID has at most {MAX_CORRELATION_CHARS} visible ASCII characters"
        )
    return raw.decode("ascii")


def traceparent_of(headers: Headers) -> str | None:
    """The caller's trace; one that is malformed is dropped, as W3C's Trace Context asks for."""
    text = headers.get(b"traceparent", b"").decode("latin-1")
    return text if TRACEPARENT.fullmatch(text) else None


def media_type(headers: Headers) -> str:
    """The Content-Type without its parameters, "" for one that is not in UTF-8."""
    if headers.get(b"content-type") == b"application/json":
        return JSON_TYPE
    match = _TYPE.fullmatch(headers.get(b"content-type", b"").strip())
    return match[1].decode().lower() if match else ""


def check_type(headers: Headers, types: Sequence[str], limit: int = MAX_BODY_BYTES) -> None:
    """Raises Problem for a body of another type, one that is compressed, or one that is announced as too large."""
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding.lower() != b"identity":
        raise Problem(415, "unsupported_media_type", "Content-Encoding is not supported: send the body as it is")
    if media_type(headers) not in types:
        raise Problem(415, "unsupported_media_type", f"Content-Type must be {' or '.join(types)}, in UTF-8")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)


def check_form(headers: Headers) -> None:
    """Raises Problem for a body that is not plain JSON, or is announced as too large."""
    check_type(headers, (JSON_TYPE,))


def _too_large(limit: int) -> Problem:
    # The rest of the body is not read, so the connection cannot be used again.
    return Problem(413, "body_too_large", f"the body is larger than {limit} bytes", headers={"Connection": "close"})


async def read_body(receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """The raw body. Raises Problem when it is too large or the caller disconnected."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body") and message["type"] == "http.request":
        if len(body) > limit:
            raise _too_large(limit)
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_rest(receive, message, limit)
    except TimeoutError as exc:
        raise Problem(408, "incomplete_body", "the body came too slowly", headers={"Connection": "close"}) from exc


async def _read_rest(receive: Receive, message: Message, limit: int) -> bytes:
    chunks: list[bytes] = [message.get("body", b"")]
    size = len(chunks[0])
    while True:
        if message["type"] == "http.disconnect":
            raise Problem(400, "incomplete_body", "the connection ended within the body")
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await receive()
        chunk: bytes = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)


class Authenticator:
    """Finds the caller of a request; as a FastAPI dependency too."""

    def __init__(self, keys: Keys, limiter: RateLimiter | None = None) -> None:
        self._keys = keys
        self._limiter = limiter

    async def caller(self, authorization: bytes | None) -> Caller:
        """Raises Problem: 401, 429, or 503 when the key cannot be checked; before the body is read."""
        scheme, _, text = (authorization or b"").decode("latin-1").partition(" ")
        try:
            caller = await self._keys.find(text.strip()) if scheme.lower() == "bearer" else None
        except UnavailableError as exc:
            raise unavailable("store_unavailable", str(exc)) from exc
        if caller is None:
            raise Problem(
                401,
                "unauthenticated",
                "give a valid API key: Authorization: Bearer hg_...",
                headers={"WWW-Authenticate": "Bearer"},
            )
        self.take(caller.key_id)
        return caller

    def take(self, key_id: str) -> None:
        """Count a call of this key. Raises Problem (429)."""
        if self._limiter is not None and (wait_s := self._limiter.take(key_id)) > 0:
            raise Problem(
                429,
                "rate_limited",
                "this API key calls more often than it may",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )

    def charge(self, caller: Caller, calls: int) -> None:
        """Count more calls against the caller's limit: what a bulk holds is known only when it is read."""
        if self._limiter is not None and calls > 0:
            self._limiter.charge(caller.key_id, calls)

    async def __call__(self, request: Request) -> Caller:
        authorization = request.headers.get("authorization")
        caller = await self.caller(authorization.encode("latin-1") if authorization is not None else None)
        _check_query(request)
        return caller


def _check_query(request: Request) -> None:
    """Raises Problem (400) for a parameter that the route does not have: a filter with a typo must not list everything."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return
    known = {parameter.alias for parameter in dependant.query_params}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        why = f"there is no query parameter of this name; there are {', '.join(sorted(known)) or 'none'}"
        raise Problem(400, "invalid_parameter", why, errors=[FieldError("", why, "unknown_parameter")])


async def read_model(request: Request, model: type[Model]) -> Model:
    """The request's body as a model. Raises Problem, RefusedError."""
    return check_model(model, await read_json(request))


async def read_json(request: Request, *types: str) -> Any:
    """The request's body as a JSON value, of these media types. Raises Problem."""
    check_type(read_headers(request.scope), types or (JSON_TYPE,))
    return parse_json(await read_body(request.receive))
