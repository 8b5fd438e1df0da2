"""Kafka, PostgreSQL and ClickHouse as containers: images and settings of docker-compose.yml, ports and data of the test.

A container stands in for a process: killed, waited for and started again it keeps its data and its port, which is
therefore bound once and never left to the engine to choose.
May import testcontainers and docker. Never: a second place that names an image.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import APIError, DockerException
from testcontainers.core.container import DockerContainer

from local.ports import LOOPBACK

COMPOSE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
_DEFAULT = re.compile(r"\$\{[A-Z_]+:-([^}]*)\}")
_HERE = ("http+docker://", "npipe://", f"http://{LOOPBACK}", "http://localhost")
_CONFLICT = 409


@functools.cache
def why_not() -> str | None:
    """Why containers cannot be used; None when a container engine on this machine answers."""
    try:
        client = docker.from_env(timeout=10)
    except DockerException as exc:
        return f"no Docker engine answers ({exc}); start one, or unset the variable for the embedded stack"
    with contextlib.closing(client):
        try:
            client.ping()
        except (DockerException, OSError) as exc:
            return f"the Docker engine does not answer ({exc})"
        if not client.api.base_url.startswith(_HERE):
            return f"the engine is at {client.api.base_url}, and the tests reach ports of this machine only"
    return None


def service(name: str) -> tuple[str, dict[str, str]]:
    """(image, environment) of a service of docker-compose.yml, with the defaults of its variables."""
    described: Mapping[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"][name]
    return described["image"], {key: _DEFAULT.sub(r"\1", str(value)) for key, value in described["environment"].items()}


class ContainerProcess:
    """A container with those methods of subprocess.Popen that the tests use."""

    def __init__(self, image: str, environment: Mapping[str, str], *, inside: int, port: int, **options: Any) -> None:
        self._made = DockerContainer(image, env=dict(environment), **options)
        # Bound to loopback: without a password only this machine may reach it. The annotation knows less than the library does.
        self._made.ports[f"{inside}/tcp"] = (LOOPBACK, port)  # type: ignore[assignment]
        atexit.register(self._made.stop)  # also where the library's own reaper is switched off
        self._made.start()
        self._container: Any = self._made.get_wrapped_container()

    def start(self) -> None:
        """Start it again, after it ended."""
        self._container.start()

    def send_signal(self, signum: int) -> None:
        """To the container's first process; nothing when it has ended."""
        try:
            self._container.kill(signal=signal.Signals(signum).name)
        except APIError as exc:
            if exc.status_code != _CONFLICT:
                raise

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended; 0 also for a server that ends by the SIGTERM it was asked with."""
        status = int(self._container.wait(timeout=timeout)["StatusCode"])
        return 0 if status == 128 + signal.SIGTERM else status

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        self._container.reload()
        return None if self._container.status == "running" else int(self._container.attrs["State"]["ExitCode"])

    def remove(self, log: Path) -> None:
        """Remove it with its data; its output stays in `log`."""
        log.write_bytes(self._container.logs())
        self._made.stop()
        atexit.unregister(self._made.stop)


def kafka(port: int) -> ContainerProcess:
    """A broker whose clients reach it on `port` of this machine."""
    image, environment = service("kafka")
    outside = "OUTSIDE://127.0.0.1:9092"
    advertised = environment["KAFKA_ADVERTISED_LISTENERS"]
    assert outside in advertised
    environment["KAFKA_ADVERTISED_LISTENERS"] = advertised.replace(outside, f"OUTSIDE://{LOOPBACK}:{port}")
    # Its name, for the listeners and the quorum: there is no network here that would know it.
    return ContainerProcess(image, environment, inside=9092, port=port, hostname="kafka")


def postgres(port: int) -> tuple[ContainerProcess, str]:
    """A server, and the URL for its clients."""
    image, environment = service("postgres")
    user, password, database = (environment[f"POSTGRES_{name}"] for name in ("USER", "PASSWORD", "DB"))
    container = ContainerProcess(image, environment, inside=5432, port=port)
    return container, f"postgresql://{user}:{password}@{LOOPBACK}:{port}/{database}"


def clickhouse(port: int) -> ContainerProcess:
    """A server that takes the user `default` without a password, as the embedded one does."""
    image, _ = service("clickhouse")
    return ContainerProcess(image, {"CLICKHOUSE_SKIP_USER_SETUP": "1"}, inside=8123, port=port)
