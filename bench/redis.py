"""A Redis of a benchmark's own, with the settings it comes with.

May import bench and local. Never: a client library: two commands are enough.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.environments import program
from bench.observe import until, worker
from local.ports import LOOPBACK, PortBook


class Redis:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = f"redis://{LOOPBACK}:{port}/0"

    def length(self, *lists: str) -> int:
        """Of several lists together."""
        return sum(int(self._ask(f"LLEN {name}").removeprefix(":")) for name in lists)

    def answers(self) -> bool:
        try:
            return self._ask("PING") == "+PONG"
        except OSError:
            return False

    def _ask(self, command: str) -> str:
        with socket.create_connection((LOOPBACK, self._port), timeout=10) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.makefile("rb").readline().decode().strip()


@contextmanager
def redis(directory: Path) -> Iterator[Redis]:
    """It runs on `directory`. Raises UnavailableRivalError where there is no redis-server."""
    server, book = program("redis-server", of="redis"), PortBook()
    port = book.reserve("redis")
    command = [server, "--port", str(port), "--bind", LOOPBACK, "--dir", directory]
    with worker([str(part) for part in command], directory / "redis.log", os.environ):
        running = Redis(port)
        until(running.answers, "Redis answers", 30)
        yield running
    book.close()
