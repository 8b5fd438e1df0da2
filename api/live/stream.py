"""GET /v1/stream: live status as server-sent events.

The one task that a stream has waits for its end; a write is a task of its own that lives for as long as the write does. A stream
of which nothing is said costs what its connection costs. No library's: those write by a task and a ping per stream.
May import starlette's types and tracking.live. Never: a framework's machinery per stream.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from api.errors import problem_for
from api.live.access import Access, LiveAuthenticator, origin_headers
from api.live.wanted import wanted, watch
from api.requests import Headers, read_headers
from runtime.clock import system_clock, system_monotonic
from runtime.errors import HeliographError
from runtime.http.problems import Problem, new_request_id, problem_response
from runtime.logs import get_logger
from tracking.live.hub import Hub, Stream
from tracking.live.watchers import END_ID, Frame, Watcher

log = get_logger("live")
PATH = "/v1/stream"
GATHER_S = 0.1
"""Frames of a tenant's stream are gathered for so long."""
MAX_QUERY_BYTES = 16_384
MAX_PARAMETERS = 150
FRAMES_A_WRITE = 500
_RETRY_MS = (2_000, 5_000)
"""Drawn per stream: after a restart not all may come back at once."""
_COMMENT = b":\n\n"


def encode(frame: Frame) -> bytes:
    """The frame as an event; one without a kind only says where the stream is."""
    if frame.wire is None:
        lines = [f"event: {frame.kind}"] if frame.kind else []
        if frame.place is not None:
            lines.append(f"id: {frame.place}")
        if frame.kind:
            lines.append(f"data: {frame.data}")
        frame.wire = ("\n".join(lines) + "\n\n").encode()
    return frame.wire


class SseStream(Stream):
    """One answer that goes on."""

    __slots__ = ("_comment", "_gather_s", "_main", "_over", "_send", "_task", "_watcher", "was_cut")

    def __init__(self, send: Send, gather_s: float) -> None:
        self._send, self._gather_s = send, gather_s
        self._main = asyncio.current_task()
        self._watcher: Watcher | None = None
        self._task: asyncio.Task[None] | None = None
        self._comment = b""
        self._over = False
        self.was_cut = False

    def begin(self, watcher: Watcher) -> None:
        """Write what there is, and from now on what comes."""
        self._watcher = watcher
        self.wake()

    def wake(self) -> None:
        """See Stream."""
        if self._watcher is not None and self._task is None and not self._over:
            self._task = asyncio.ensure_future(self._write(self._watcher))

    def keep_alive(self, place: str) -> None:
        """See Stream; a tenant's stream is told where it is, so that it need not begin far back."""
        self._comment = _COMMENT if not self._gather_s else f":\nid: {place}\n\n".encode()
        self.wake()

    def cut(self) -> None:
        """See Stream."""
        self.close()
        self.was_cut = True
        if self._main is not None:
            self._main.cancel()

    def close(self) -> None:
        """Write nothing more."""
        self._over = True
        if self._task is not None:
            self._task.cancel()

    async def _write(self, watcher: Watcher) -> None:
        try:
            if self._gather_s and watcher.ended is None:
                await asyncio.sleep(self._gather_s)
            watcher.writing_since = system_monotonic()
            while not self._over:
                frames = watcher.take()
                comment, self._comment = self._comment, b""
                if not frames and not comment:
                    return
                last = bool(frames) and frames[-1] is watcher.ended
                self._over = last
                await self.write(frames, comment, last=last)
                watcher.written_at = watcher.writing_since = system_monotonic()
        except Exception:
            log.exception("a stream cannot be written")
        finally:
            watcher.writing_since = None
            self._task = None

    async def write(self, frames: Sequence[Frame], comment: bytes = b"", *, last: bool = False) -> None:
        """These, now."""
        body = comment + b"".join(map(encode, frames))
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        now = system_clock()
        for frame in frames:
            frame.observe_delay(now)


class StreamEndpoint:
    """The ASGI endpoint."""

    def __init__(self, hub: Hub, authenticator: LiveAuthenticator, origins: Sequence[str]) -> None:
        self._hub, self._authenticator, self._origins = hub, authenticator, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000, "reason": "a stream is read over HTTP"})
            return
        request_id = new_request_id()
        more: list[tuple[bytes, bytes]] = []
        try:
            headers = read_headers(scope)
            more = origin_headers(headers, self._origins)
            if scope["method"] == "OPTIONS":
                await _answer_preflight(more, send)
                return
            if scope["method"] != "GET":
                raise Problem(405, "method_not_allowed", "a stream is read with GET", headers={"Allow": "GET, OPTIONS"})
            given = _query(scope)
            after = _last(headers, given)
            access = await self._authenticator.access(headers.get(b"authorization"), _token(given))
            if after == END_ID:
                await send({"type": "http.response.start", "status": 204, "headers": more})
                await send({"type": "http.response.body", "body": b""})
                return
            await self._stream(access, given, after, request_id, more, receive, send)
        except (Problem, HeliographError) as exc:
            if (problem := problem_for(exc)) is None:
                raise
            response = problem_response(problem, request_id)
            response.raw_headers += more
            await response(scope, receive, send)

    async def _stream(
        self,
        access: Access,
        given: dict[str, list[str]],
        after: str | None,
        request_id: str,
        more: list[tuple[bytes, bytes]],
        receive: Receive,
        send: Send,
    ) -> None:
        asked = wanted(given, access)
        stream = SseStream(send, 0.0 if asked.ids else GATHER_S)
        watcher, first = await watch(self._hub, stream, asked, access, after)
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (b"content-type", b"text/event-stream; charset=utf-8"),
                        (b"cache-control", b"no-store"),
                        (b"x-accel-buffering", b"no"),  # nginx would gather it
                        (b"connection", b"close"),
                        (b"x-request-id", request_id.encode()),
                        *more,
                    ],
                }
            )
            retry = f"retry: {random.randint(*_RETRY_MS)}\n\n".encode()
            await send({"type": "http.response.body", "body": retry, "more_body": True})
            watcher.writing_since = system_monotonic()
            for start in range(0, len(first), FRAMES_A_WRITE):
                await stream.write(first[start : start + FRAMES_A_WRITE])
                watcher.writing_since = system_monotonic()
            watcher.writing_since = None
            stream.begin(watcher)
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            if not stream.was_cut:
                raise
            log.info("a stream is cut off: its reader does not read")
        finally:
            self._hub.leave(watcher)
            stream.close()


def _query(scope: Scope) -> dict[str, list[str]]:
    raw: bytes = scope["query_string"]
    try:
        if len(raw) > MAX_QUERY_BYTES:
            raise ValueError
        return parse_qs(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except ValueError as exc:
        raise Problem(400, "invalid_parameter", "the query is too long, or not UTF-8 behind its escapes") from exc


def _token(given: dict[str, list[str]]) -> str | None:
    values = given.pop("access_token", [])
    return values[0] if len(values) == 1 else None


def _last(headers: Headers, given: dict[str, list[str]]) -> str | None:
    """The id of the last event that the caller has; its header counts, since a browser sends it by itself."""
    values = given.pop("last_event_id", [])
    if (header := headers.get(b"last-event-id")) is not None:
        return header.decode("latin-1") or None
    return (values[0] or None) if values else None


async def _answer_preflight(more: list[tuple[bytes, bytes]], send: Send) -> None:
    headers = list(more)
    if any(name == b"access-control-allow-origin" for name, _ in more):
        headers += [
            (b"access-control-allow-methods", b"GET"),
            (b"access-control-allow-headers", b"Authorization, Last-Event-ID, Cache-Control"),
            (b"access-control-max-age", b"600"),
        ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
