"""What accepting costs: POST /v1/notifications over 64 connections, a 202 only after every replica has the record.

One `run api` with a real Kafka and PostgreSQL and none of the consumers, beside servers that keep nothing. CPU is the server's alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count as counter
from pathlib import Path

import psycopg
from pydantic import SecretStr

from bench import data, profiles
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.e2e import WrongRunError, listens
from bench.environments import UnavailableRivalError, environment, python
from bench.observe import Ends, Worker, until, worker
from bench.processes import cpu_s, tree
from bench.world import World
from local.ports import LOOPBACK, PortBook
from local.servers.postgres import PostgresServer
from producers.reference.keys import create_api_key
from producers.reference.schema import migrate
from runtime.kafka.producer import Producer
from schemas.topics import requests_topic

PEPPER = "pepper-of-the-bench"
PATH = "/v1/notifications"


@contextmanager
def running_postgres(directory: Path, book: PortBook) -> Iterator[str]:
    """Its DSN; fsync is on."""
    server = PostgresServer(directory / "postgres", book.reserve("postgres"))
    server.prepare()
    with (
        (directory / "postgres.log").open("ab") as log,
        subprocess.Popen(server.command(), stdout=log, stderr=log) as process,
    ):
        try:
            until(lambda: _answers(server.dsn), "PostgreSQL answers", 60)
            migrate(server.dsn)
            yield server.dsn
        finally:
            process.send_signal(signal.SIGINT)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


class Server:
    """A process that answers POSTs on a port."""

    def __init__(self, process: Worker, port: int, token: str = "", accepted: Callable[[], int] | None = None) -> None:
        """`accepted` counts the records that Kafka has; without it the answers are believed."""
        self.process = process
        self._port, self._token, self._accepted = port, token, accepted
        self._turn = counter()

    def measure(self, count: int, keyed: bool = False) -> Measured:
        before, cpu = self._accepted() if self._accepted else 0, cpu_s(tree(self.process.pid))
        arguments = [f"http://{LOOPBACK}:{self._port}{PATH}", "--token", self._token, "--requests", str(count)]
        if keyed:
            arguments += ["--keyed", f"{self._port}-{os.getpid()}-{next(self._turn)}"]
        done = subprocess.run(
            [sys.executable, "-m", "bench.load", *arguments], capture_output=True, text=True, env=environment()
        )
        if done.returncode:
            raise WrongRunError(f"the load ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        used, answer = cpu_s(tree(self.process.pid)) - cpu, json.loads(done.stdout)
        taken = answer["statuses"].get("202", 0)
        figures = {"per_second": count / answer["seconds"], "cpu_us": used / count * 1e6}
        stored = self._accepted() - before if self._accepted else taken
        latency = {"p50_ms": answer["p50_ms"], "p99_ms": answer["p99_ms"]}
        return Measured({**figures, **latency}, Counts(count, taken, stored))


def api(started: ExitStack, world: World, directory: Path, book: PortBook) -> Server:
    """Ready, and knowing the template."""
    settings, port = world.broker(), book.reserve("api")
    dsn = started.enter_context(running_postgres(directory, book))
    token = create_api_key(dsn, data.TENANT, "bench", pepper=SecretStr(PEPPER))
    producer = Producer(settings, client_id="bench")
    producer.publish([data.template_record(data.TENANT)])
    producer.close()
    env = environment(
        {
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "HELIOGRAPH_POSTGRES__DSN": dsn,
            "HELIOGRAPH_API__PORT": str(port),
            "HELIOGRAPH_API__KEY_PEPPER": PEPPER,
            "HELIOGRAPH_PARTITIONS": "local",
        }
    )
    command = [sys.executable, "-m", "console.cli", "run", "api"]
    process = started.enter_context(worker(command, directory / "api.log", env, directory))
    server = Server(process, port, token, Ends(settings, [requests_topic("normal")]))
    until(lambda: listens(port), "the api listens", 60, process)
    time.sleep(3)  # until its view of templates is there
    return server


def echo(started: ExitStack, kind: str, directory: Path, book: PortBook) -> Server:
    port = book.reserve(kind)
    command: list[str | Path] = [python("clients"), "-m", "bench.rivals.echo", kind, str(port)]
    process = started.enter_context(worker(command, directory / f"{kind}.log", environment()))
    until(lambda: listens(port), f"{kind} listens", 60, process)
    return Server(process, port)


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    count, left_out, book = scale.size(10_000, 50_000), {}, PortBook()
    directory = world.directory / "ingest"
    directory.mkdir()
    with ExitStack() as started:
        started.callback(book.close)
        ours = api(started, world, directory, book)
        contenders = [
            Contender("api", partial(ours.measure, count)),
            Contender("api, with an Idempotency-Key", partial(ours.measure, count, keyed=True)),
        ]
        for kind, name in (("asgi", "raw ASGI echo, keeps nothing"), ("fastapi", "FastAPI echo, keeps nothing")):
            try:
                if scale.rivals:
                    contenders.append(Contender(name, partial(echo(started, kind, directory, book).measure, count)))
            except UnavailableRivalError as exc:
                left_out[name] = str(exc)
        for contender in contenders:
            contender.measure()  # what is compiled or connected once
        yield Trial(
            data.digest_of(count, users=count),
            contenders,
            "cpu_us",
            contenders[0].name,
            left_out,
            [f"{count} requests a round"],
            {"api": partial(profiles.of_process, ours.process.pid, partial(ours.measure, count))},
        )


CASE = Case("ingest", "a request over HTTP is in Kafka on every replica", "broker", open_trial)
