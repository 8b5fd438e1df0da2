"""HTTP for providers: one request, no retry, no redirect; an error says whether the request may have been read.

aiohttp repeats a lost request of an idempotent method only, so never a POST. Its trace says when a connection exists: before
that nothing was written; after it the request may have been read.
May import aiohttp. Never: a provider, a body's meaning.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp

MAX_RESPONSE_BYTES = 1 << 20
_UNPACKS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""zlib's window by Content-Encoding. None of them is asked for; a proxy may pack all the same."""


class NotSentError(Exception):
    """The request never left: no connection."""


class ResponseLostError(Exception):
    """The request may have been read; its response was not."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The provider's response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class _Attempt:
    """The state of one request, set by aiohttp's trace."""

    connected: bool = False


async def _connected(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.connected = True


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body as far as it was read: the status alone is a response; the caller decides about an incomplete body."""
    body = bytearray()
    try:
        while len(body) < MAX_RESPONSE_BYTES and (piece := await response.content.read(MAX_RESPONSE_BYTES - len(body))):
            body += piece
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        response.close()
    return _unpacked(bytes(body), response.headers.get("Content-Encoding", "").strip().lower())


def _unpacked(body: bytes, encoding: str) -> bytes:
    """At most MAX_RESPONSE_BYTES of what was packed: a few bytes can stand for gigabytes. What cannot be unpacked stays as it is."""
    window = _UNPACKS.get(encoding)
    if window is None:
        return body
    try:
        return zlib.decompressobj(window).decompress(body, MAX_RESPONSE_BYTES)
    except zlib.error:
        return body


def basic_auth(user: str, secret: str) -> str:
    """The value of an Authorization header (RFC 7617)."""
    return f"Basic {b64encode(f'{user}:{secret}'.encode()).decode()}"


class HttpTransport:
    """Kept connections to one provider."""

    def __init__(self, timeout_s: float, max_connections: int) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    def start(self, session: aiohttp.ClientSession | None = None) -> None:
        """Make the session (default: a new one); opens no connection."""
        if session is not None:
            self._session = session
            return
        # keepalive below what servers commonly allow: a connection that closes during a request leaves it in doubt.
        connector = aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=15)
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_connection_reuseconn.append(_connected)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
            trace_configs=[trace],
        )

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        """POST once. Raises NotSentError or ResponseLostError."""
        return await self._request("POST", url, headers, body)

    async def get(self, url: str, *, headers: Mapping[str, str]) -> HttpResponse:
        """GET; aiohttp may ask again when a kept connection was lost. Raises NotSentError or ResponseLostError."""
        return await self._request("GET", url, headers, None)

    async def _request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> HttpResponse:
        assert self._session is not None, "start() comes first"
        attempt = _Attempt()
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False, trace_request_ctx=attempt
            ) as response:
                return HttpResponse(
                    response.status, {k.lower(): v for k, v in response.headers.items()}, await _body(response)
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            error = ResponseLostError if attempt.connected else NotSentError
            raise error(type(exc).__name__) from exc

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
