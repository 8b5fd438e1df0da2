"""/v1/ws: live status over WebSocket, many subscriptions on one connection.

    client  {"type": "auth", "token": "..."}                          within 5 s, unless the handshake had a key
            {"type": "subscribe", "id": "a", "filter": {...}, "after": "1-..."}      {"type": "unsubscribe", "id": "a"}
    server  subscribed, snapshot, event, gap, reset, end, error: each with the id of its subscription

    closes  4400 malformed   4401 not authenticated, or no longer   4403 origin   4408 too slow   4429 too many   1012 restart

Each subscription is a watcher of the hub, with the same limits as a stream of its own.
May import starlette's types and tracking.live. Never: a frame of SSE.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from api.live.access import Access, LiveAuthenticator
from api.live.frames import AUTH_TIMEOUT_S, FRAMES_PER_S, Allowance, is_foreign
from api.live.wanted import Wanted, wanted, watch
from api.requests import read_headers
from api.strict_json import parse_json
from runtime.clock import system_clock, system_monotonic
from runtime.errors import HeliographError, RefusedError
from runtime.http.problems import Problem, problem_of
from runtime.logs import get_logger
from tracking.live.hub import Hub, Stream
from tracking.live.watchers import Frame, Watcher

log = get_logger("live")
PATH = "/v1/ws"
SUBPROTOCOL = "heliograph.v1"
MAX_SUBSCRIPTIONS = 100
MAX_FRAME_BYTES = 16_384
MAX_ID_CHARS = 64
MALFORMED, UNAUTHENTICATED, ORIGIN, TOO_SLOW, TOO_MANY, RESTART, GOING_AWAY = 4400, 4401, 4403, 4408, 4429, 1012, 1001


class _Close(Exception):
    """The connection is over."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Subscription(Stream):
    """A watcher of a connection."""

    def __init__(self, connection: _Connection, name: str) -> None:
        self.connection, self.name = connection, name
        self.watcher: Watcher | None = None

    def wake(self) -> None:
        """See Stream."""
        if self.watcher is not None:
            self.connection.wake(self)

    def keep_alive(self, place: str) -> None:
        """See Stream: the protocol's own pings do it."""

    def cut(self) -> None:
        """See Stream."""
        self.connection.cut()


class _Connection:
    """One WebSocket."""

    def __init__(self, hub: Hub, send: Send) -> None:
        self._hub, self._send = hub, send
        self.subscriptions: dict[str, _Subscription] = {}
        self._ready: dict[_Subscription, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._main = asyncio.current_task()
        self.was_cut = False
        self.restarting = asyncio.Event()

    async def say(self, kind: str, name: str | None, **more: Any) -> None:
        """One message."""
        message: dict[str, Any] = {"type": kind} if name is None else {"type": kind, "id": name}
        await self._send({"type": "websocket.send", "text": json.dumps({**message, **more}, separators=(",", ":"))})

    def wake(self, subscription: _Subscription) -> None:
        """It has something to send."""
        self._ready[subscription] = None
        if self._task is None:
            self._task = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        try:
            while self._ready:
                subscription = next(iter(self._ready))
                del self._ready[subscription]
                watcher = subscription.watcher
                if watcher is None:
                    continue
                watcher.writing_since = system_monotonic()
                try:
                    frames = watcher.take()
                    await self.write(subscription.name, frames)
                finally:
                    watcher.writing_since = None
                    watcher.written_at = system_monotonic()
                if frames and frames[-1] is watcher.ended:
                    self.drop(subscription.name)
                    if json.loads(watcher.ended.data)["reason"] == "restart":
                        self.restarting.set()
        except Exception:
            log.exception("a socket cannot be written")
            self.cut()
        finally:
            self._task = None

    async def write(self, name: str, frames: Sequence[Frame]) -> None:
        """These, as messages of one subscription."""
        now = system_clock()
        for frame in frames:
            kind = "event" if frame.kind == "status" else frame.kind
            if not kind:
                continue
            head = {"type": kind, "id": name}
            if frame.place is not None:
                head["cursor"] = frame.place
            text = f"{json.dumps(head, separators=(',', ':'))[:-1]},{frame.data[1:]}"
            await self._send({"type": "websocket.send", "text": text})
            frame.observe_delay(now)

    async def subscribe(self, name: str, asked: Wanted, access: Access, after: str | None) -> None:
        """Watch; says `subscribed` and what comes first. Raises RefusedError, UnavailableError."""
        subscription = _Subscription(self, name)
        watcher, first = await watch(self._hub, subscription, asked, access, after)
        self.subscriptions[name] = subscription
        try:
            watcher.writing_since = system_monotonic()
            await self.say("subscribed", name, cursor=self._hub.place())
            for frame in first:
                watcher.writing_since = system_monotonic()
                await self.write(name, [frame])
        except BaseException:
            self._hub.leave(watcher)
            raise
        finally:
            watcher.writing_since = None
        subscription.watcher = watcher
        subscription.wake()

    def drop(self, name: str) -> bool:
        """Watch it no more; False when there is no such subscription."""
        subscription = self.subscriptions.pop(name, None)
        if subscription is None:
            return False
        self._ready.pop(subscription, None)
        if subscription.watcher is not None:
            self._hub.leave(subscription.watcher)
        return True

    def cut(self) -> None:
        """Its reader does not read."""
        self.was_cut = True
        if self._main is not None:
            self._main.cancel()

    def close(self) -> None:
        """Watch nothing more."""
        for name in list(self.subscriptions):
            self.drop(name)
        if self._task is not None:
            self._task.cancel()


class SocketEndpoint:
    """The ASGI endpoint."""

    def __init__(self, hub: Hub, authenticator: LiveAuthenticator, origins: Sequence[str]) -> None:
        self._hub, self._authenticator, self._origins = hub, authenticator, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            headers = [(b"content-type", b"text/plain"), (b"upgrade", b"websocket"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 426, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        await receive()  # websocket.connect
        offered = SUBPROTOCOL in scope.get("subprotocols", ())
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None})
        connection = _Connection(self._hub, send)
        try:
            if not offered:
                raise _Close(MALFORMED, f"offer the subprotocol {SUBPROTOCOL}")
            await self._converse(scope, connection, receive)
        except _Close as over:
            connection.close()
            await send({"type": "websocket.close", "code": over.code, "reason": str(over)})
        except asyncio.CancelledError:
            if not connection.was_cut:
                raise
            log.info("a socket is cut off: its reader does not read")
            with contextlib.suppress(TimeoutError):  # this is not read either, perhaps
                async with asyncio.timeout(1):
                    await send({"type": "websocket.close", "code": TOO_SLOW, "reason": "what is sent is not read"})
        finally:
            connection.close()

    async def _converse(self, scope: Scope, connection: _Connection, receive: Receive) -> None:
        """Until the caller goes. Raises _Close."""
        try:
            headers = read_headers(scope)
        except Problem as exc:
            raise _Close(MALFORMED, exc.detail) from exc
        if is_foreign(headers, self._origins):
            raise _Close(ORIGIN, "this origin is not among HELIOGRAPH_LIVE__ALLOWED_ORIGINS")
        access = await self._authenticated(headers.get(b"authorization"), receive)
        if access is None:
            return
        allowance = Allowance()
        restarting: asyncio.Future[Any] = asyncio.ensure_future(connection.restarting.wait())
        reading: asyncio.Future[Any] = asyncio.ensure_future(_text(receive))
        try:
            while True:
                await asyncio.wait([restarting, reading], return_when=asyncio.FIRST_COMPLETED)
                if restarting.done():
                    raise _Close(RESTART, "this process restarts: connect again")
                text = reading.result()
                if text is None:
                    return
                if not allowance.take():
                    raise _Close(TOO_MANY, f"at most {FRAMES_PER_S} frames a second")
                await self._handle(connection, access, _message(text))
                reading = asyncio.ensure_future(_text(receive))
        finally:
            restarting.cancel()
            reading.cancel()

    async def _authenticated(self, authorization: bytes | None, receive: Receive) -> Access | None:
        """None when the caller goes before."""
        try:
            if authorization is not None:
                return await self._authenticator.access(authorization, None)
            async with asyncio.timeout(AUTH_TIMEOUT_S):
                text = await _text(receive)
            if text is None:
                return None
            message = _message(text)
            token = message.get("token")
            if message.get("type") != "auth" or not isinstance(token, str):
                raise _Close(UNAUTHENTICATED, "the first frame is auth, with a token")
            if token.startswith("hgs_"):
                return await self._authenticator.token_access(token)
            return await self._authenticator.access(f"Bearer {token}".encode("latin-1", "replace"), None)
        except TimeoutError as exc:
            raise _Close(UNAUTHENTICATED, f"no auth frame within {AUTH_TIMEOUT_S:.0f} s") from exc
        except Problem as exc:
            code = TOO_MANY if exc.status == 429 else UNAUTHENTICATED if exc.status == 401 else RESTART
            raise _Close(code, exc.code) from exc

    async def _handle(self, connection: _Connection, access: Access, message: dict[str, Any]) -> None:
        kind, name = message.get("type"), message.get("id")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_ID_CHARS:
            raise _Close(MALFORMED, f"id is a text of 1 to {MAX_ID_CHARS} characters")
        try:
            if kind == "unsubscribe":
                if not connection.drop(name):
                    await connection.say(
                        "error", name, code="unknown_subscription", detail="there is no such subscription"
                    )
            elif kind == "subscribe":
                await self._subscribe(connection, access, name, message)
            else:
                raise _Close(MALFORMED, "type is subscribe or unsubscribe")
        except RefusedError as exc:
            await connection.say("error", name, code=exc.code, detail=problem_of(exc).detail)
        except HeliographError as exc:
            await connection.say("error", name, code="store_unavailable", detail=str(exc))

    async def _subscribe(self, connection: _Connection, access: Access, name: str, message: dict[str, Any]) -> None:
        if message.keys() - {"type", "id", "filter", "after"}:
            raise _Close(MALFORMED, "a subscribe frame has type, id, filter and after")
        after = message.get("after")
        if after is not None and not isinstance(after, str):
            raise _Close(MALFORMED, "after is the cursor of an earlier message")
        if name in connection.subscriptions:
            await connection.say("error", name, code="conflict", detail="there is a subscription of this id")
            return
        if not await self._authenticator.still_holds(access):
            raise _Close(UNAUTHENTICATED, "the key is revoked, or the token has ended")
        if len(connection.subscriptions) >= MAX_SUBSCRIPTIONS:
            raise _Close(TOO_MANY, f"at most {MAX_SUBSCRIPTIONS} subscriptions")
        await connection.subscribe(name, wanted(_given(message.get("filter", {})), access), access, after or None)


def _given(filters: Any) -> dict[str, list[str]]:
    """A filter as the parameters of a stream: texts, or a list of them. Raises _Close."""
    if not isinstance(filters, dict):
        raise _Close(MALFORMED, "filter is an object")
    given = {}
    for name, value in filters.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values):
            raise _Close(MALFORMED, "a filter is a text, or a list of them")
        given[name] = values
    return given


async def _text(receive: Receive) -> str | None:
    """The next message; None when the caller is gone. Raises _Close for a binary or a large one."""
    message = await receive()
    if message["type"] == "websocket.disconnect":
        return None
    text = message.get("text")
    if text is None or len(text) > MAX_FRAME_BYTES:
        raise _Close(MALFORMED, f"a frame is text, of at most {MAX_FRAME_BYTES} bytes")
    return str(text)


def _message(text: str) -> dict[str, Any]:
    try:
        message = parse_json(text.encode("utf-8", "surrogatepass"))
    except Problem as exc:
        raise _Close(MALFORMED, "a frame is a JSON object") from exc
    if not isinstance(message, dict):
        raise _Close(MALFORMED, "a frame is a JSON object")
    return message
