"""A rolling restart under load: `python -m bench.restart --rate 200`.

A local stack with two processes of every role. Each is ended with SIGTERM and started again, one after the other, as a deployment is
rolled; the next one follows when it is ready again. Meanwhile calls come in at a fixed rate, sent to the APIs that answer `/readyz`, as a
load balancer does. Figures are from the moment a call was due to the vendor's own log.

A run in which a call was refused, somebody was missed or reached twice, or a message is flagged as a possible duplicate is an error, not a
figure.
May import every layer. Never: a figure whose messages are not all there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from bench.e2e import WrongRunError
from bench.figures import quantile
from bench.observe import until
from console.commands.output import show
from local import stack
from local.ports import LOOPBACK, PortBook
from local.supervisor.layout import ROLES
from local.supervisor.state import StateFiles
from runtime.settings import ApiSettings, CallbackSettings, ClickHouseSettings
from sinks import clickhouse

ROOT = Path(__file__).parent.parent
ASKED_EVERY_S = 0.05
"""How often the load balancer asks whether an API is ready."""
SETTLE_S = 3.0
"""Before the first restart and after the last."""
PATIENCE_S = 120.0
LANES = ("critical", "normal")
DRAINS = {"api": ApiSettings().drain_s, "callbacks": CallbackSettings().drain_s}
"""As in a deployment: a local stack does not drain."""


def is_ready(url: str) -> bool:
    """Whether the process at this address says so."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_ready(url: str, role: str) -> None:
    """Raises WrongRunError when it is not ready in time."""
    until(lambda: is_ready(url), f"{role} at {url} is ready", PATIENCE_S)


@dataclass
class Second:
    """A second process of a role, beside the stack's own."""

    role: str
    port: int
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "console.cli", "run", *ROLES[self.role]]
        self.process = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)


@dataclass
class Deployment:
    """A stack and the second processes of its roles."""

    directory: Path
    seconds: Mapping[str, Second]

    @property
    def endpoints(self) -> Mapping[str, Any]:
        return stack.read_endpoints(self.directory)

    def first_url(self, role: str) -> str:
        """Of the stack's own process."""
        return str(self.endpoints["metrics"][role]).removesuffix("/metrics")

    def restart_first(self, role: str) -> None:
        """The supervisor starts it again."""
        url, pid = self.first_url(role), self.endpoints["pids"][role]
        os.kill(pid, signal.SIGTERM)
        until(lambda: self.endpoints["pids"].get(role, pid) != pid, f"{role} is another process", PATIENCE_S)
        wait_ready(url, role)

    def restart_second(self, role: str) -> None:
        second = self.seconds[role]
        second.stop()
        second.start()
        wait_ready(second.url, role)


@contextmanager
def deployed() -> Iterator[Deployment]:
    """Two processes of every role, all ready."""
    book = PortBook()
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as name:
        directory = Path(name)
        config = directory / "deployment.toml"
        config.write_text("".join(f"[{table}]\ndrain_s = {drain_s}\n" for table, drain_s in DRAINS.items()))
        stack.up(directory, config=config, detach=True)
        files, known = StateFiles(directory), stack.read_endpoints(directory)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HELIOGRAPH_CONFIG": str(files.settings),
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": known["kafka"],
            "HELIOGRAPH_POSTGRES__DSN": known["postgres"],
            "HELIOGRAPH_CLICKHOUSE__URL": known["clickhouse"],
            "HELIOGRAPH_CLICKHOUSE__DATABASE": known["clickhouse_database"],
            "HELIOGRAPH_PARTITIONS": "local",
            "HELIOGRAPH_API__HOST": LOOPBACK,
            "HELIOGRAPH_API__KEY_PEPPER": files.read(files.secrets)["key_pepper"],
            "HELIOGRAPH_METRICS__HOST": LOOPBACK,
            "HELIOGRAPH_CALLBACKS__PORT": str(book.reserve("callbacks-public")),
        }
        seconds = {}
        for role in ROLES:
            port = book.reserve(role)
            where = "HELIOGRAPH_API__PORT" if role == "api" else "HELIOGRAPH_METRICS__PORT"
            seconds[role] = Second(role, port, {**environment, where: str(port)})
        made = Deployment(directory, seconds)
        try:
            for second in seconds.values():
                second.start()
            for role, second in seconds.items():
                wait_ready(second.url, role)
            yield made
        finally:
            for second in seconds.values():
                second.stop()
            stack.down(directory)
            book.close()


@dataclass
class Load:
    """Calls at moments fixed before, to the APIs that are ready."""

    deployment: Deployment
    rate: float
    due: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Recipient → (lane, when it was due), of every 202."""
    refused: list[tuple[float, str]] = field(default_factory=list)
    """When, and what was said instead of 202."""
    ended: bool = False

    async def run(self) -> None:
        """Until `ended`."""
        apis = [self.deployment.first_url("api"), self.deployment.seconds["api"].url]
        key = self.deployment.endpoints["api_key"]
        ready = set(apis)
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def watch(url: str) -> None:
                while not self.ended:
                    try:
                        async with session.get(f"{url}/readyz") as answer:
                            well = answer.status == 200
                    except aiohttp.ClientError:
                        well = False
                    (ready.add if well else ready.discard)(url)
                    await asyncio.sleep(ASKED_EVERY_S)

            async with asyncio.TaskGroup() as group:
                for url in apis:
                    group.create_task(watch(url))
                started, n = time.time(), 0
                while not self.ended:
                    there = sorted(ready) or apis
                    group.create_task(self._call(session, there[n % len(there)], n, started + n / self.rate))
                    n += 1
                    await asyncio.sleep(max(0.0, started + n / self.rate - time.time()))

    async def _call(self, session: aiohttp.ClientSession, url: str, n: int, due: float) -> None:
        lane = LANES[n % 2]
        to = {"phone": f"+49151{n:08d}"} if n % 4 < 2 else {"email": f"u{n}@example.org"}
        body = {"to": to, "content": {"subject": "s", "text": "x"}, "priority": lane}
        try:
            async with session.post(f"{url}/v1/notifications", json=body) as answer:
                if answer.status != 202:
                    self.refused.append((time.time(), str(answer.status)))
                    return
        except aiohttp.ClientError as exc:
            self.refused.append((time.time(), type(exc).__name__))
            return
        self.due[next(iter(to.values()))] = lane, due


def roll(deployment: Deployment) -> list[dict[str, Any]]:
    """Restart everything; a row per process: when it began and how long it took, in seconds."""
    rows = []
    time.sleep(SETTLE_S)
    for role in ROLES:
        for which, restart in (("first", deployment.restart_first), ("second", deployment.restart_second)):
            began = time.time()
            restart(role)
            rows.append({"role": role, "process": which, "began": began, "took_s": round(time.time() - began, 1)})
    time.sleep(SETTLE_S)
    return rows


def arrivals(deployment: Deployment) -> dict[str, list[float]]:
    """Recipient → the times of the vendor's log."""
    found: dict[str, list[float]] = {}
    with urllib.request.urlopen(f"{deployment.endpoints['simulator']}/accepted", timeout=60) as answer:
        for entry in json.load(answer):
            found.setdefault(entry["to"], []).append(datetime.fromisoformat(entry["at"]).timestamp())
    return found


def flagged(deployment: Deployment) -> int:
    """Messages that may have been sent twice, by our own account."""
    settings = ClickHouseSettings(url=deployment.endpoints["clickhouse"])
    client = clickhouse.connect(settings)
    try:
        return int(client.query("SELECT countIf(possible_duplicate) FROM message_state").result_rows[0][0])
    finally:
        client.close()


def refusals(load: Load, rolled: Sequence[dict[str, Any]]) -> Counter[str]:
    """How often a call was not accepted, by what was said and what was being restarted."""
    found: Counter[str] = Counter()
    for at, what in load.refused:
        during = next((row for row in reversed(rolled) if row["began"] <= at), None)
        found[f"{what} ({during['process']} {during['role']})" if during else what] += 1
    return found


def measured(deployment: Deployment, load: Load, rolled: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The tables, once everything has arrived. Raises WrongRunError."""
    deadline = time.monotonic() + PATIENCE_S
    while load.due.keys() - (there := arrivals(deployment)).keys() and time.monotonic() < deadline:
        time.sleep(1)
    missing = len(load.due.keys() - there.keys())
    twice = sum(len(times) > 1 for times in there.values())
    doubtful = flagged(deployment)
    if load.refused or missing or twice or doubtful:
        said = "; ".join(f"{count} × {what}" for what, count in refusals(load, rolled).items()) or "none"
        raise WrongRunError(f"refused: {said}; missed {missing}, reached twice {twice}, flagged {doubtful}")
    waits: dict[str, list[tuple[float, float]]] = {lane: [] for lane in LANES}
    for to, (lane, due) in load.due.items():
        waits[lane].append((due, (there[to][0] - due) * 1000))
    lanes = [
        {
            "lane": lane,
            "calls": len(of_lane),
            **{f"p{share:g}_ms": round(quantile([ms for _, ms in of_lane], share / 100)) for share in (50, 99)},
            "max_ms": round(max(ms for _, ms in of_lane)),
        }
        for lane, of_lane in waits.items()
    ]
    roles = []
    for row in rolled:
        shown = {name: row[name] for name in ("role", "process", "took_s")}
        for lane, of_lane in waits.items():
            during = [ms for at, ms in of_lane if row["began"] <= at < row["began"] + row["took_s"]]
            shown[f"{lane} p99"] = round(quantile(during, 0.99)) if during else None
            shown[f"{lane} max"] = round(max(during, default=0))
        roles.append(shown)
    return [lanes, roles]


async def run(rate: float) -> None:
    """One rolling restart, and its figures."""
    with deployed() as deployment:
        load = Load(deployment, rate)
        calling = asyncio.create_task(load.run())
        try:
            rolled = await asyncio.to_thread(roll, deployment)
        finally:
            load.ended = True
            await calling
        # Before the stack is removed, which takes minutes where a disk discards every file of its mailbox at once.
        for table in await asyncio.to_thread(measured, deployment, load, rolled):
            show(table, as_json=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200, help="calls a second")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with it
    asyncio.run(run(parser.parse_args(arguments).rate))


if __name__ == "__main__":
    main()
