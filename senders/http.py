"""HTTP for providers: one request, no retry, no redirect, and the answer to the question "was it written?".

May import aiohttp. What never enters here: a provider, a body's meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

MAX_ANSWER_BYTES = 1 << 20


class NotSentError(Exception):
    """The request never left: no connection."""


class AnswerLostError(Exception):
    """The request may have been read, its answer was not."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the provider said."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpTransport:
    """Kept connections to one provider."""

    def __init__(self, timeout_s: float, max_connections: int) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Make the session; opens no connection."""
        # keepalive below what servers commonly allow: a connection closed under a request is a doubt.
        connector = aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=15)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True
        )

    async def post(
        self, url: str, *, headers: Mapping[str, str], body: bytes, auth: tuple[str, str] | None = None
    ) -> Answer:
        """POST once. Raises NotSentError or AnswerLostError."""
        assert self._session is not None, "start() comes first"
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False,
                auth=aiohttp.BasicAuth(*auth) if auth else None,
            ) as response:  # fmt: skip
                answer = await response.content.read(MAX_ANSWER_BYTES)
                return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            raise NotSentError(type(exc).__name__) from exc
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            raise AnswerLostError(type(exc).__name__) from exc

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
