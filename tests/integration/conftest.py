"""Real parts for integration tests, started once per module that asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from console.local.kafka_server import KafkaServer
from console.local.ports import PortBook
from runtime import topics
from runtime.kafka import Admin, wait_for_broker
from runtime.settings import KafkaSettings


def until(condition: Callable[[], bool], timeout_s: float = 60.0, what: str = "condition") -> None:
    """Wait until `condition` holds; fails the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:.0f} s"
        time.sleep(0.05)


@dataclass
class Broker:
    """A Kafka broker with our topics, and roles run against it as processes of their own."""

    server: KafkaServer
    directory: Path
    process: subprocess.Popen[bytes]
    roles: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def settings(self) -> KafkaSettings:
        return KafkaSettings(bootstrap_servers=self.server.bootstrap_servers)

    def start(self) -> None:
        with (self.directory / "kafka.log").open("ab") as log:
            self.process = subprocess.Popen(self.server.command(), stdout=log, stderr=log)
        wait_for_broker(self.settings, 60)

    def run(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """`heliograph run ...` against this broker."""
        with (self.directory / f"{'-'.join(arguments)}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "console.cli", "run", *arguments], stdout=log, stderr=log,
                env={**os.environ, "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": self.server.bootstrap_servers, **env},
            )  # fmt: skip
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


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    directory = tmp_path_factory.mktemp("broker")
    book = PortBook()
    server = KafkaServer(directory / "kafka", book.reserve("kafka"), book.reserve("kafka-controller"))
    server.prepare()
    made = Broker(server, directory, None)  # type: ignore[arg-type]  # started on the next line
    made.start()
    try:
        topics.apply(Admin(made.settings), "local")
        yield made
    finally:
        made.stop_roles()
        made.process.terminate()
        made.process.wait(30)
        book.close()
