"""How a role serves HTTP: the port, taken early and named when it is in use; then uvicorn until the role ends.

    asked to stop ──► /readyz says so, every answer ends its connection ──(drain_s)──► the port is closed ──► requests in flight end

For `drain_s` it serves on, so that whoever shares calls out by /readyz has time to send them elsewhere: nobody is refused. Until
then an idle connection is kept for longer than a load balancer keeps it: only the side that calls knows that it is not calling.
May import uvicorn. Never: a route, a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runtime.errors import UnavailableError
from runtime.health import Health

DRAIN_S = 15
KEEP_ALIVE_S = 620
"""Above the 600 s of Google's load balancers and the 60 s of Amazon's and nginx's; uvicorn's own 5 s cut off calls that were being sent."""
_BACKLOG = 2_048
USER_TIMEOUT_MS = 30_000
MAX_WEBSOCKET_BYTES = 16_384
"""Of a message from a caller."""
MAX_HEAD_BYTES = 65_536
"""Of a request line and its headers, which nobody has signed yet; load balancers take as much or less."""
HEAD_TIMEOUT_S = 20.0
"""For a whole head."""
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def listen(host: str, port: int, variable: str) -> socket.socket:
    """The port, taken. Raises UnavailableError naming its setting, `variable`, when it is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it; without it head and body of an answer are 40 ms apart.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Inherited as well: a peer that is gone, or takes nothing of what was written, does not hold its connection for a quarter of an hour.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {exc.strerror}; set {variable} to a free port"
        ) from exc
    return listener


class _BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, which bounds neither the bytes nor the time of a head, nor a connection that never asks.

    An application is called only once the head is there, so none can bound it.
    """

    _in_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, _TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, answer: bytes) -> None:
        self._end_head()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the role has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _ends_connections(app: ASGIApp, stopping: asyncio.Event) -> ASGIApp:
    """The application, with `Connection: close` in every answer once it is stopping."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and stopping.is_set():
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, send_last if scope["type"] == "http" else send)

    return answer


async def serve(
    app: ASGIApp, listener: socket.socket, stopping: asyncio.Event, health: Health, drain_s: float = 0.0
) -> None:
    """Serve until `stopping` and for `drain_s` longer, then finish the requests in flight."""
    health.require("draining", lambda: "stops, and takes no new callers" if stopping.is_set() else None)
    config = uvicorn.Config(
        _ends_connections(app, stopping),
        loop="none",
        http=_BoundedHeads,
        ws="websockets-sansio",
        ws_max_size=MAX_WEBSOCKET_BYTES,
        # Compression would hold 64 KiB a connection.
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait([serving, stop], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait([serving], timeout=drain_s)
    server.should_exit = True
    await serving
    stop.cancel()
