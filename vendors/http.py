"""HTTP for providers: one request, no retry, no redirect; an error says whether the request may have been read.

aiohttp repeats a lost request of an idempotent method only, so never a POST. Its body notes when it begins to be written: before
that no server can have had the request; after it the request may have been read.
May import aiohttp. Never: a provider, a body's meaning.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, AbstractStreamWriter
from yarl import URL

from runtime.outbound import OutboundRefusedError, refusal

MAX_RESPONSE_BYTES = 1 << 20
_UNPACKS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""zlib's window by Content-Encoding. None of them is asked for; a proxy may pack all the same."""


class NotSentError(Exception):
    """The request never left: no connection, or one that was lost before the body."""


class ResponseLostError(Exception):
    """The request may have been read; its response was not."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The provider's response."""

    status: int
    headers: Mapping[str, str]
    """A name is found in any case."""
    body: bytes


class _Body(aiohttp.BytesPayload):
    """Bytes that note when they begin to be written. aiohttp's trace says it too, at a fifth of the cost of a request."""

    begun = False

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self.begun = True
        await super().write_with_length(writer, content_length)


async def _body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body as far as it was read: the status alone is a response; the caller decides about an incomplete body."""
    body = bytearray()
    try:
        while len(body) < limit and not response.content.at_eof():
            body += await response.content.read(limit - len(body))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        response.close()
    return _unpacked(bytes(body), response.headers.get("Content-Encoding", "").strip().lower(), limit)


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """At most `limit` bytes of what was packed: a few bytes can stand for gigabytes. What cannot be unpacked stays as it is."""
    window = _UNPACKS.get(encoding)
    if window is None:
        return body
    try:
        return zlib.decompressobj(window).decompress(body, limit)
    except zlib.error:
        return body


def basic_auth(user: str, secret: str) -> str:
    """The value of an Authorization header (RFC 7617)."""
    return f"Basic {b64encode(f'{user}:{secret}'.encode()).decode()}"


class HttpTransport:
    """Kept connections to one provider."""

    def __init__(
        self,
        timeout_s: float,
        max_connections: int,
        *,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_connections = max_connections
        self._max_response_bytes = max_response_bytes
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    def start(self, session: aiohttp.ClientSession | None = None) -> None:
        """Make the session (default: a new one); opens no connection."""
        if session is not None:
            self._session = session
            return
        # keepalive below what servers commonly allow: a connection that closes during a request leaves it in doubt.
        connector = aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=15, resolver=self._resolver)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        )

    async def post(self, url: str | URL, *, headers: Mapping[str, str], body: bytes) -> HttpResponse:
        """POST once. Raises NotSentError or ResponseLostError; OutboundRefusedError where a resolver of ours refuses the host."""
        return await self._request("POST", url, headers, _Body(body))

    async def get(self, url: str | URL, *, headers: Mapping[str, str]) -> HttpResponse:
        """GET, which changes nothing; aiohttp may ask again when a kept connection was lost. Raises NotSentError."""
        return await self._request("GET", url, headers, None)

    async def _request(
        self, method: str, url: str | URL, headers: Mapping[str, str], body: _Body | None
    ) -> HttpResponse:
        assert self._session is not None, "start() comes first"
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return HttpResponse(
                    response.status,
                    response.headers,
                    await _body(response, self._max_response_bytes),
                )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            if (refused := refusal(exc)) is not None:
                raise OutboundRefusedError(str(refused)) from exc
            error = ResponseLostError if body is not None and body.begun else NotSentError
            raise error(type(exc).__name__) from exc

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
        if self._resolver is not None:  # aiohttp closes one of its own alone
            await self._resolver.close()
