"""A whole local stack with second sender processes, and what a fault does to it: load, kills, pauses, vendors' faults."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console.commands.lag import consumer_groups
from local import stack
from local.ports import LOOPBACK
from local.verification import ClickHouseResults, DemoEndpoints, Verification, gather, local_endpoints, reports_pending
from runtime.errors import HeliographError
from runtime.kafka.admin import Admin
from runtime.kafka.consumer import BEGINNING, Consumer
from schemas.codec import DecodeError, codec
from schemas.topics import STATUS, TIMERS

Say = Callable[[str], None]
SECONDS = ("email", "sms", "push")
"""Channels with a second sender process, so that a paused one has a successor."""


@dataclass
class Second:
    """A role outside the supervisor, started again when it ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """Start it where it does not run."""
        if self.process is None or self.process.poll() is not None:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)


@dataclass
class World:
    """A running stack; `hurt` and `pause` break it, `verification` compares its outcome."""

    state_dir: Path
    seconds: dict[str, Second] = field(default_factory=dict)
    paused: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Role → (pid, when it goes on)."""

    @property
    def endpoints(self) -> dict[str, Any]:
        return stack.read_endpoints(self.state_dir)

    @property
    def places(self) -> DemoEndpoints:
        return local_endpoints(self.endpoints)

    @property
    def roles(self) -> list[str]:
        """What may be killed."""
        pids = self.endpoints["pids"]
        return sorted((set(pids) - {"supervisor", "simulator", "mailbox"}) | set(self.seconds))

    def pid_of(self, role: str) -> int | None:
        """The process of a role, None while it does not run."""
        if role in self.seconds:
            process = self.seconds[role].process
            return process.pid if process is not None and process.poll() is None else None
        pid = self.endpoints["pids"].get(role)
        return pid if pid is not None and Path(f"/proc/{pid}").exists() else None

    def signal(self, role: str, number: signal.Signals) -> bool:
        """Whether there was a process to signal."""
        pid = self.pid_of(role)
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def pause(self, role: str, for_s: float) -> bool:
        """SIGSTOP, until `wake` finds its time has come."""
        pid = self.pid_of(role)
        if pid is None or role in self.paused or not self.signal(role, signal.SIGSTOP):
            return False
        self.paused[role] = (pid, time.monotonic() + for_s)
        return True

    def resume_paused(self, everyone: bool = False) -> None:
        """SIGCONT to those whose time has come."""
        for role, (pid, until) in list(self.paused.items()):
            if everyone or time.monotonic() >= until:
                del self.paused[role]
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue

    def keep(self) -> None:
        """What has to be done every now and then."""
        self.resume_paused()
        for second in self.seconds.values():
            second.keep()

    # -- the vendors --------------------------------------------------------------------------------------------------

    def fault(self, **fault: Any) -> None:
        self._simulator("POST", "/faults", fault)

    def clear_faults(self) -> None:
        self._simulator("DELETE", "/faults")

    def _simulator(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.endpoints["simulator"] + path,
            json.dumps(body).encode() if body is not None else None,
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            raw = response.read()
        return json.loads(raw) if raw else None

    def accepts(self) -> list[dict[str, Any]]:
        """The vendors' log."""
        entries: list[dict[str, Any]] = self._simulator("GET", "/accepted?limit=1000000")
        return entries

    def accept_count(self) -> int:
        return int(self._simulator("GET", "/accepted/count")["count"])

    # -- what became of it --------------------------------------------------------------------------------------------

    def settle(self, since: int, wanted: int, timeout_s: float, say: Say) -> dict[str, int]:
        """Wait until ClickHouse has everything settled; the last accounting."""
        deadline = time.monotonic() + timeout_s
        reported_at = 0.0
        while True:
            self.keep()
            accounting = self._accounting(since)
            if accounting and accounting["accepted"] >= wanted and accounting["in_flight"] == 0:
                return accounting
            if time.monotonic() > deadline:
                return accounting or {}
            if time.monotonic() - reported_at > 10:
                reported_at = time.monotonic()
                say(f"settling: {accounting}")
            time.sleep(0.5)

    def _accounting(self, since: int) -> dict[str, int] | None:
        try:
            book = ClickHouseResults(self.places, since)
            try:
                return book.accounting()
            finally:
                book.close()
        except HeliographError:
            return None  # the engine was killed a moment ago

    def calm(self, timeout_s: float) -> None:
        """Wait until the vendors have told everything and nobody lags."""
        deadline = time.monotonic() + timeout_s
        while (asyncio.run(reports_pending(self.places)) or self.lag()) and time.monotonic() < deadline:
            self.keep()
            time.sleep(0.5)

    def verification(self, since: int, since_seq: int, published: set[str]) -> Verification:
        book = ClickHouseResults(self.places, since)
        try:
            return gather(book, self.places, published, since_seq)
        finally:
            book.close()

    def query(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        import clickhouse_connect

        endpoints = self.endpoints
        client = clickhouse_connect.get_client(dsn=endpoints["clickhouse"], database=endpoints["clickhouse_database"])
        try:
            return [tuple(row) for row in client.query(sql, parameters=parameters).result_rows]
        finally:
            client.close()

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Every status event by its id."""
        found = {}
        for record in self._read(STATUS):
            try:
                status = codec("DeliveryStatus").decode(record.value)
            except DecodeError:
                continue
            found[status["event_id"]] = status
        return found

    def pending_timers(self) -> int:
        """Timers that are not fired, not cancelled."""
        last: dict[bytes, bytes | None] = {}
        for record in self._read(TIMERS):
            if record.key is not None:
                last[record.key] = record.value
        return sum(value is not None for value in last.values())

    def lag(self) -> dict[str, int]:
        """Group → records it has not committed; groups without lag are left out."""
        admin = Admin(self.places.kafka)
        lags = {
            group: sum(admin.group_offsets(group, topics)[1].values()) for group, topics in consumer_groups().items()
        }
        return {group: lag for group, lag in lags.items() if lag}

    def _read(self, topic: str) -> list[Any]:
        consumer = Consumer(self.places.kafka, client_id="oracle", group=None, detect_eof=True)
        try:
            partitions = consumer.partitions_for_topic(topic)
            consumer.assign(dict.fromkeys(partitions, BEGINNING))
            records: list[Any] = []
            while not consumer.eof_partitions.issuperset(partitions):
                records += consumer.consume(10_000, 0.5)
            return records
        finally:
            consumer.close()


@contextmanager
def world(
    state_dir: Path,
    *,
    seconds: tuple[str, ...] = SECONDS,
    config: Path | None = None,
    ports: Mapping[str, int] | None = None,
) -> Iterator[World]:
    """A stack of its own in `state_dir`, gone afterwards."""
    started = stack.up(state_dir, detach=True, config=config, ports=ports)
    made = World(state_dir)
    endpoints = made.endpoints
    environment = {
        **os.environ,
        "HELIOGRAPH_CONFIG": str(state_dir / "heliograph.toml"),
        "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": endpoints["kafka"],
        "HELIOGRAPH_METRICS__HOST": LOOPBACK,
        "HELIOGRAPH_METRICS__PORT": "0",
    }
    for channel in seconds:
        command = [sys.executable, "-m", "console.cli", "run", "sender", "--channel", channel]
        log = state_dir / "logs" / f"second-{channel}.log"
        made.seconds[f"second-{channel}"] = Second(f"second-{channel}", command, environment, log)
    made.keep()
    try:
        yield made
    finally:
        made.resume_paused(everyone=True)
        for second in made.seconds.values():
            if second.process is not None:
                second.process.terminate()
        for second in made.seconds.values():
            if second.process is not None:
                try:
                    second.process.wait(15)
                except subprocess.TimeoutExpired:
                    second.process.kill()
                    second.process.wait()
        stack.down(state_dir)
        if started.process is not None:
            started.process.wait(20)
