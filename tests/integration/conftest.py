"""Real parts for integration tests, started once per module that asks; containers where the variable says so."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from local.ports import LOOPBACK, PortBook
from local.servers.kafka import KafkaServer
from runtime import topics
from runtime.kafka.admin import Admin, wait_for_broker
from runtime.settings import KafkaSettings
from senders.role import new_event_loop
from tests.support import stack

if TYPE_CHECKING:
    from tests.support.containers import ContainerProcess


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Senders are tested on their own loop: what a write has already given to the kernel differs between loops."""
    return (
        {"uvloop": new_event_loop} if item.path.name == "test_one_request.py" else {"asyncio": asyncio.new_event_loop}
    )


def pytest_collection_finish() -> None:
    """A stack that cannot be had is told before the first test, not by hundreds of errors."""
    stack.on_containers()


def until(
    condition: Callable[[], bool],
    timeout_s: float = 120.0,
    what: str = "condition",
    found: Callable[[], object] = lambda: "",
) -> None:
    """Wait until `condition` holds; fails the test when it does not in time, and says what is `found` instead."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:.0f} s: {found()}"
        time.sleep(0.05)


@dataclass
class Broker:
    """A Kafka broker with our topics, and roles run against it as processes of their own."""

    bootstrap_servers: str
    directory: Path
    launch: Callable[[], subprocess.Popen[bytes] | ContainerProcess]
    """Starts the broker, also after it was killed: the same port, the same data."""
    process: subprocess.Popen[bytes] | ContainerProcess = field(init=False)
    roles: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def settings(self) -> KafkaSettings:
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    def start(self) -> None:
        self.process = self.launch()
        wait_for_broker(self.settings, 60)

    def run(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """`heliograph run ...` against this broker."""
        with (self.directory / f"{'-'.join(arguments)}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "console.cli", "run", *arguments],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers,
                    # Nobody shares calls out by /readyz here, and every test waits for its roles to end.
                    "HELIOGRAPH_API__DRAIN_S": "0",
                    "HELIOGRAPH_CALLBACKS__DRAIN_S": "0",
                    **env,
                },
            )
        self.roles.append(process)
        return process

    def stop_roles(self) -> None:
        for role in self.roles:
            role.send_signal(signal.SIGTERM)
        for role in self.roles:
            try:
                role.wait(20)
            except subprocess.TimeoutExpired:
                role.kill()
                role.wait()
        self.roles.clear()


def embedded_broker(directory: Path, port: int, controller_port: int) -> Broker:
    server = KafkaServer(directory / "kafka", port, controller_port)
    server.prepare()

    def launch() -> subprocess.Popen[bytes]:
        with (directory / "kafka.log").open("ab") as log:
            return subprocess.Popen(server.command(), stdout=log, stderr=log)

    return Broker(server.bootstrap_servers, directory, launch)


def container_broker(directory: Path, port: int) -> Broker:
    from tests.support import containers

    made: ContainerProcess | None = None

    def launch() -> ContainerProcess:
        nonlocal made
        if made is None:
            made = containers.kafka(port)
        else:
            made.start()
        return made

    return Broker(f"{LOOPBACK}:{port}", directory, launch)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    directory = tmp_path_factory.mktemp("broker")
    book = PortBook()
    port = book.reserve("kafka")
    if stack.on_containers():
        made = container_broker(directory, port)
    else:
        made = embedded_broker(directory, port, book.reserve("kafka-controller"))
    made.start()
    try:
        topics.apply(Admin(made.settings), "local")
        yield made
    finally:
        made.stop_roles()
        made.process.terminate()
        made.process.wait(30)
        if not isinstance(made.process, subprocess.Popen):
            made.process.remove(directory / "kafka.log")
        book.close()
