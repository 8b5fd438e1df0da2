"""How a role serves HTTP: the port, taken early and named when it is in use; then uvicorn until the role ends.

May import uvicorn. Never: a route, a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from runtime.errors import UnavailableError

DRAIN_S = 15
_BACKLOG = 2_048


def listen(host: str, port: int, variable: str) -> socket.socket:
    """The port, taken. Raises UnavailableError naming its setting, `variable`, when it is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it; without it head and body of an answer are 40 ms apart.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {exc.strerror}; set {variable} to a free port"
        ) from exc
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the role has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: ASGIApp, listener: socket.socket, stopping: asyncio.Event) -> None:
    """Serve until `stopping`, then finish the requests in flight."""
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="auto",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait([serving, stop], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    stop.cancel()
