"""A real PostgreSQL for tests, and the api and relay as processes against it and a real Kafka."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import psycopg
import pytest
from pydantic import SecretStr

from local.ports import PortBook
from local.servers.postgres import PostgresServer
from producers.reference.keys import create_api_key
from producers.reference.schema import migrate
from runtime.kafka.consumer import BEGINNING, Consumer
from runtime.records import ConsumerRecord
from runtime.settings import KafkaSettings
from tests.integration.conftest import Broker, until
from tests.support import stack

if TYPE_CHECKING:
    from tests.support.containers import ContainerProcess

T = TypeVar("T")
PEPPER = SecretStr("pepper-of-the-tests")
HOOKS_KEY = "a-key-of-the-tests-that-is-long-enough"


@dataclass
class Postgres:
    """A PostgreSQL server that can be stopped and started."""

    dsn: str
    launch: Callable[[], subprocess.Popen[bytes] | ContainerProcess]
    process: subprocess.Popen[bytes] | ContainerProcess = field(init=False)

    def start(self) -> None:
        self.process = self.launch()
        until(self.answers, 60, "PostgreSQL")

    def answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


def embedded_postgres(directory: Path, port: int) -> Postgres:
    server = PostgresServer(directory / "postgres", port)
    server.prepare()

    def launch() -> subprocess.Popen[bytes]:
        server.clear_leftovers()
        with (directory / "postgres.log").open("ab") as log:
            return subprocess.Popen(server.command(), stdout=log, stderr=log)

    return Postgres(server.dsn, launch)


def container_postgres(port: int) -> Postgres:
    from tests.support import containers

    running, dsn = containers.postgres(port)
    fresh = True

    def launch() -> ContainerProcess:
        nonlocal fresh
        if not fresh:
            running.start()
        fresh = False
        return running

    return Postgres(dsn, launch)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    directory = tmp_path_factory.mktemp("postgres")
    book = PortBook()
    port = book.reserve("postgres")
    made = container_postgres(port) if stack.on_containers() else embedded_postgres(directory, port)
    made.start()
    try:
        migrate(made.dsn)
        yield made
    finally:
        made.stop()
        if not isinstance(made.process, subprocess.Popen):
            made.process.remove(directory / "postgres.log")
        book.close()


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass
class Api:
    """A client of the api."""

    url: str
    key: str

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        raw: bytes | None = None,
        **headers: str,
    ) -> Answer:
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        wanted = {"Authorization": f"Bearer {self.key if key is None else key}", "Content-Type": "application/json"}
        wanted |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, wanted, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
                return Answer(response.status, _parsed(text), dict(response.headers.items()))
        except urllib.error.HTTPError as exc:
            with exc:
                return Answer(exc.code, _parsed(exc.read()), dict(exc.headers.items()))

    def send(self, body: Any = None, **headers: str) -> Answer:
        return self.call("POST", "/v1/notifications", body or text_to("u1"), key=None, raw=None, **headers)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode()


def text_to(user_id: str, text: str = "hello") -> dict[str, Any]:
    """A notification that needs no template."""
    return {"to": {"user_id": user_id}, "content": {"text": text}, "channels": ["sms"]}


@dataclass
class World:
    """Kafka, PostgreSQL, and the roles under test."""

    broker: Broker
    postgres: Postgres
    book: PortBook
    api_port: int
    key: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def api(self) -> Api:
        return Api(f"http://127.0.0.1:{self.api_port}", self.key)

    def run(self, *role: str, **env: str) -> subprocess.Popen[bytes]:
        return self.broker.run(*role, **{**self.settings, **env})

    def wait_ready(self) -> None:
        def ready() -> bool:
            try:
                return self.api.call("GET", "/readyz").status == 200
            except OSError:
                return False

        until(ready, 30, "readiness of the api")

    def records(self, topic: str) -> list[ConsumerRecord]:
        return read_topic(self.broker.settings, topic)


def end(process: subprocess.Popen[bytes], timeout_s: float = 20) -> int:
    """SIGTERM; the exit status."""
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout_s)


def read_topic(settings: KafkaSettings, topic: str) -> list[ConsumerRecord]:
    """Every record there is."""
    consumer = Consumer(settings, client_id="test", group=None, detect_eof=True)
    try:
        partitions = consumer.partitions_for_topic(topic)
        consumer.assign(dict.fromkeys(partitions, BEGINNING))
        found: list[ConsumerRecord] = []
        deadline = time.monotonic() + 30
        while not consumer.eof_partitions.issuperset(partitions):
            assert time.monotonic() < deadline
            found += consumer.consume(10_000, 0.2)
        return found
    finally:
        consumer.close()


@pytest.fixture(scope="module")
def world(broker: Broker, postgres: Postgres) -> Iterator[World]:
    """Everything but the roles: a test module starts those that it wants."""
    book = PortBook()
    port = book.reserve("api")
    key = create_api_key(postgres.dsn, "default", "tests", pepper=PEPPER)
    settings = {
        "HELIOGRAPH_POSTGRES__DSN": postgres.dsn,
        "HELIOGRAPH_API__PORT": str(port),
        "HELIOGRAPH_API__KEY_PEPPER": PEPPER.get_secret_value(),
        "HELIOGRAPH_API__PUBLISH_TIMEOUT_S": "3",
        "HELIOGRAPH_HOOKS__KEY": HOOKS_KEY,
        "HELIOGRAPH_PARTITIONS": "local",
    }
    try:
        yield World(broker, postgres, book, port, key, settings)
    finally:
        broker.stop_roles()
        book.close()


def in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """`work(number)` in `count` threads that start together; the results, in any order."""
    gate = threading.Barrier(count)

    def go(number: int) -> T:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(go, range(count)))
