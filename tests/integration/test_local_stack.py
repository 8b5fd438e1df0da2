"""A real Kafka broker and a real PostgreSQL under the supervisor: they start, are killed, and come back with their data."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from local import PortError
from local.ports import PortBook
from local.processes import Child, ChildSpec, last_line, start_time_of
from local.servers import postgres
from local.servers.kafka import KafkaServer
from local.servers.postgres import PostgresServer
from local.supervisor.children import Supervisor

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]


@dataclass
class Stores:
    kafka: KafkaServer
    postgres: PostgresServer
    supervisor: Supervisor

    def child(self, name: str) -> Child:
        return next(child for child in self.supervisor.children if child.name == name)

    def kill(self, name: str) -> float:
        """Kill -9, wait until another process is ready in its place; the seconds that took."""
        child = self.child(name)
        old, starts, began = child.pid, child.starts, time.monotonic()
        assert old is not None
        os.kill(old, signal.SIGKILL)
        _until(lambda: child.starts > starts and child.ready)
        assert child.pid != old
        return time.monotonic() - began


def _until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    directory = tmp_path_factory.mktemp("stack")
    book = PortBook()
    kafka = KafkaServer(directory / "kafka", book.reserve("kafka"), book.reserve("kafka-controller"))
    postgres = PostgresServer(directory / "postgres", book.reserve("postgres"))
    specs = [
        ChildSpec("kafka", kafka.command, kafka.is_ready, directory / "kafka.log", prepare=kafka.prepare),
        ChildSpec(
            "postgres",
            postgres.command,
            postgres.is_ready,
            directory / "postgres.log",
            prepare=postgres.prepare,
            before_start=postgres.clear_leftovers,
            stop_signal=signal.SIGINT,
        ),
    ]
    failures: list[str | None] = []
    supervisor = Supervisor(specs, [], lambda: None, lambda supervisor, reason: failures.append(reason))
    life = threading.Thread(target=supervisor.run)
    life.start()
    try:
        _until(lambda: supervisor.phase != "starting")
        assert supervisor.phase == "ready", failures[-1]
        yield Stores(kafka, postgres, supervisor)
    finally:
        pids = [child.pid for child in supervisor.children if child.pid is not None]
        supervisor.request_stop()
        life.join(60)
        book.close()
    assert [pid for pid in pids if start_time_of(pid) is not None] == []


def test_killed_broker_restarts_on_its_port_with_its_records(stores: Stores) -> None:
    servers = {"bootstrap.servers": stores.kafka.bootstrap_servers}
    admin = AdminClient(servers)  # named: its futures end with it
    admin.create_topics([NewTopic("kept", 4, 1)])["kept"].result(30)
    producer = Producer({**servers, "acks": "all"})
    for number in range(100):
        producer.produce("kept", value=str(number), partition=number % 4)
    assert producer.flush(30) == 0

    assert stores.kill("kafka") < 30

    consumer = Consumer({**servers, "group.id": "reader", "enable.auto.commit": False})
    try:
        ends = [consumer.get_watermark_offsets(TopicPartition("kept", number), timeout=30)[1] for number in range(4)]
    finally:
        consumer.close()
    assert ends == [25, 25, 25, 25]


def test_killed_database_restarts_on_its_port_with_what_was_committed(stores: Stores) -> None:
    with psycopg.connect(stores.postgres.dsn) as connection:
        connection.execute("CREATE TABLE kept (number int PRIMARY KEY)")
        connection.execute("INSERT INTO kept SELECT generate_series(1, 100)")
    with psycopg.connect(stores.postgres.dsn) as session:  # a session that is open while the server dies
        assert stores.kill("postgres") < 15
        assert session.pgconn is not None
    with psycopg.connect(stores.postgres.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (100,)


def test_pid_file_that_names_another_living_process_does_not_stop_the_database(stores: Stores) -> None:
    pid_file = next(stores.postgres.directory.rglob("postmaster.pid"))
    child = stores.child("postgres")
    pid_file.write_text(pid_file.read_text().replace(str(child.pid), str(os.getpid()), 1))
    assert stores.kill("postgres") < 15


def test_database_asks_for_its_password(stores: Stores) -> None:
    wrong = stores.postgres.dsn.replace("heliograph:", "heliograph:wrong", 1)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong).close()


def test_broker_logs_its_warnings(stores: Stores) -> None:
    log = stores.child("kafka").spec.log
    assert "StaticLoggerBinder" not in log.read_text()
    assert isinstance(last_line(log), str)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's closed home shuts out the user that PostgreSQL runs as")
def test_database_is_made_and_started_below_a_closed_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    package = postgres.install_directory().parent
    for name in (package.name, f"{package.name}.libs"):  # its programs look for their libraries beside the package
        shutil.copytree(package.with_name(name), home / name, symlinks=True)
    installed = home / package.name / "pginstall"
    monkeypatch.setattr(postgres, "install_directory", lambda: installed)
    book = PortBook()
    server = PostgresServer(home / "postgres", book.reserve("postgres"))
    server.prepare()
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(server.is_ready)
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert psutil.Process(process.pid).uids().effective == pwd.getpwnam("nobody").pw_uid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        book.close()


def test_port_that_something_listens_on_is_refused(tmp_path: Path) -> None:
    with socket.socket() as listener:
        book = PortBook(tmp_path)
        port = book.reserve("kafka")
        book.close()
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with pytest.raises(PortError, match="--kafka-port"):
            book.reserve("kafka", port)
