"""A client of the HTTP API: JSON with one key, over one session. It speaks to the local stack's simulator and mailbox, too.

    async with ApiClient(url, key) as api:
        answer = await api.call("GET", f"/v1/notifications/{id}")

    ApiError            an answer with a status that was not expected; says what the API says
    UnavailableError    no answer in time, or one of more than `max_response_bytes`
May import aiohttp. Never: a route, an endpoint of a stack, a screen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Container, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import aiohttp

from runtime.errors import HeliographError, UnavailableError

TIMEOUT_S = 60
MAX_RESPONSE_BYTES = 64 << 20
SUCCESS = range(200, 300)
RETRY_AFTER_S = 1.0
"""Between two tries of a call that is answered 503: what the API's Retry-After says."""
_SHOWN = 300


_SILENCE_S = 45.0
"""A stream says something every 15 s."""
_FINAL = "end"
"""The id of an event that nothing follows."""


class ApiResponse(NamedTuple):
    """`body` is the JSON value, None for an empty body or another form."""

    status: int
    body: Any


class LiveEvent(NamedTuple):
    """An event of a stream of live status; `data` is its JSON value."""

    kind: str
    id: str | None
    data: Any


class ApiError(HeliographError):
    """The API refused: its `status`, and its own `words` (the detail of its problem document)."""

    def __init__(self, url: str, status: int, raw: bytes) -> None:
        problem = _json(raw)
        words = problem.get("detail") or problem.get("title") if isinstance(problem, dict) else None
        self.status = status
        self.words = str(words or raw[:_SHOWN].decode("utf-8", "replace") or "without a reason")
        super().__init__(f"{url} answered {status}: {self.words}")


class ApiClient:
    """Calls with one key, several at once; an async context."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        connections: int = 32,
        tries: int = 1,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        """`tries`: how often a call is made that is answered 503, where 503 is not expected."""
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._connections = connections
        self._tries = tries
        self._max_response_bytes = max_response_bytes
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ApiClient:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(self._timeout_s),
            trust_env=True,  # proxies of the environment; runtime/proxies.py spares this machine
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def call(self, method: str, path: str, body: Any = None, *, expect: Container[int] = SUCCESS) -> ApiResponse:
        """The answer, whose status is in `expect`. Raises ApiError or UnavailableError."""
        for _ in range(self._tries - 1):
            status, raw = await self._once(method, path, body)
            if status != 503 or status in expect:
                break
            await asyncio.sleep(RETRY_AFTER_S)
        else:
            status, raw = await self._once(method, path, body)
        if status not in expect:
            raise ApiError(f"{method} {self.url}{path}", status, raw)
        return ApiResponse(status, _json(raw))

    async def events(self, path: str) -> AsyncIterator[LiveEvent]:
        """The events of a stream to its end, through lost connections: each goes on behind the last. Raises ApiError or
        UnavailableError, for an address that nothing has answered at yet."""
        assert self._session is not None, "use it as an async context"
        last: str | None = None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._timeout_s, sock_read=_SILENCE_S)
        answered = False
        while last != _FINAL:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
            try:
                async with self._session.get(self.url + path, headers=headers, timeout=timeout) as response:
                    if response.status != 200 and not (answered and response.status in (429, 503)):
                        if response.status == 204:
                            return
                        raise ApiError(f"GET {self.url}{path}", response.status, await self._read(response))
                    if response.status == 200:
                        answered = True
                        parser = _Events(self._max_response_bytes)
                        async for chunk in response.content.iter_any():
                            for event in parser.feed(chunk):
                                last = event.id or last
                                if event.kind:
                                    yield event
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                if not answered:
                    why = str(exc) or type(exc).__name__
                    raise UnavailableError(f"cannot reach {self.url}: {why}; is it running?") from exc
            if last != _FINAL:
                await asyncio.sleep(RETRY_AFTER_S)

    async def text(self, path: str) -> str:
        """The body of a 200, as it is. Raises ApiError or UnavailableError."""
        status, raw = await self._once("GET", path, None)
        if status != 200:
            raise ApiError(f"GET {self.url}{path}", status, raw)
        return raw.decode("utf-8", "replace")

    async def _once(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        assert self._session is not None, "use it as an async context"
        try:
            async with self._session.request(method, self.url + path, json=body) as response:
                return response.status, await self._read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            why = str(exc) or type(exc).__name__
            raise UnavailableError(f"cannot reach {self.url}: {why}; is it running?") from exc

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        raw = bytearray()
        async for chunk in response.content.iter_any():
            raw += chunk
            if len(raw) > self._max_response_bytes:
                raise UnavailableError(f"{self.url} answers with more than {self._max_response_bytes >> 20} MiB")
        return bytes(raw)


class _Events:
    """Events out of the bytes of a stream, in whatever pieces they come."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = b""

    def feed(self, chunk: bytes) -> Iterator[LiveEvent]:
        """Those that are whole now. Raises UnavailableError for one that is too large."""
        *blocks, self._left = (self._left + chunk).split(b"\n\n")
        if len(self._left) > self._max_bytes:
            raise UnavailableError(f"an event of the stream is larger than {self._max_bytes >> 20} MiB")
        for block in blocks:
            kind, place, data = "", None, b""
            for line in block.split(b"\n"):
                name, _, value = line.partition(b": ")
                if name == b"event":
                    kind = value.decode("utf-8", "replace")
                elif name == b"id":
                    place = value.decode("utf-8", "replace")
                elif name == b"data":
                    data = value
            if kind or place is not None:
                yield LiveEvent(kind, place, _json(data))


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None
