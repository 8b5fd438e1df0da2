"""A ClickHouse server for the tests: the embedded engine behind HTTP, or a container.

May import clickhouse-connect and the stack of the tests. Never: tables.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from tests.support import stack

if TYPE_CHECKING:
    from tests.support.containers import ContainerProcess


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One server with its data; `path` is a directory that is its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.port = path, free_port()
        self.process: subprocess.Popen[bytes] | ContainerProcess
        self._container: ContainerProcess | None = None

    def launch(self) -> subprocess.Popen[bytes] | ContainerProcess:
        """The server, not yet ready."""
        if not stack.on_containers():
            return self.embedded()
        if self._container is not None:
            self._container.start()
        else:
            from tests.support import containers

            self._container = containers.clickhouse(self.port)
        return self._container

    def embedded(self) -> subprocess.Popen[bytes]:
        """The embedded server, whatever the stack."""
        command = [sys.executable, "-m", "local.servers.clickhouse", "--path", str(self.path)]
        return subprocess.Popen([*command, "--port", str(self.port)], stderr=subprocess.DEVNULL)

    def start(self) -> Server:
        self.process = self.launch()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get("/ping")[0] == 200:
                    return self
            except OSError:
                pass  # not yet
            time.sleep(0.05)
        raise AssertionError("the server did not start")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        self.process.send_signal(signum)
        return self.process.wait(30)

    def client(self, **options: object) -> Client:
        return clickhouse_connect.get_client(host="127.0.0.1", port=self.port, **options)  # type: ignore[arg-type]

    def get(self, path: str, data: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data=data, timeout=30) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()
