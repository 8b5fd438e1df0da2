"""From a published request to the provider, everything included: `python -m bench.e2e --channel email --messages 30000`.

A local stack of its own (Kafka, PostgreSQL, ClickHouse's engine, every role) with bench.bare_provider as the provider. Each
request names a user and a template; mails have a text and an HTML part. Acks from all replicas, fsync, claims, the ledger and the
re-check before sending are on, as by default.

    drain       --messages at once: messages/s from the first publish to the last arrival, and CPU µs a message by process
                until all are settled in ClickHouse
    blast       --blast N on the bulk lane at once, and critical messages meanwhile, each round against its own idle value
    latency     --rates, each for --seconds: published to arrived, p50 and p99; `critical@R` publishes on the critical lane

Every phase counts: published = arrived once = settled as sent, residual 0; a run that does not is an error, not a figure.
May import every layer. Never: a figure whose messages are not all there.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import data
from bench.figures import quantile
from bench.processes import cpu_s, pss_mib, tree
from console.commands.output import show
from local import stack
from local.cli import process_counts
from local.ports import LOOPBACK, PortBook
from local.simulator.fcm import Credentials
from local.supervisor.layout import to_toml
from local.supervisor.state import StateFiles
from producers.publisher import Publication, Publisher
from runtime.kafka.producer import Producer
from runtime.settings import ClickHouseSettings, KafkaSettings
from sinks import clickhouse

OURS = ("sender-", "router-", "kafka", "clickhouse", "relay", "sink", "postgres", "api", "timers", "callbacks")
"""Processes of the product; the provider, the publisher and what only the local stack has are listed apart."""
PATIENCE_S = 180.0
BLAST_RATE = 10.0
"""Critical messages a second beside a blast: codes of people who sign in meanwhile."""


class WrongRunError(Exception):
    """Something was lost, doubled or not settled: there is no figure."""


@dataclass(slots=True)
class Bench:
    """A stack that is measured."""

    endpoints: Mapping[str, Any]
    provider: str
    users: int
    processes: Mapping[str, int]
    """The root of each process tree, by name."""
    out: Publisher
    """Kept, as a service keeps it: the first publish of a new one waits half a second for its connections."""
    accepted: int = 0
    """Published so far, in every phase."""

    def arrivals(self) -> dict[str, list[float]]:
        """When each recipient's messages arrived."""
        with urllib.request.urlopen(f"{self.provider}/arrivals", timeout=60) as answer:
            found: dict[str, list[float]] = json.load(answer)
        return found

    def count(self) -> int:
        """How many messages have arrived."""
        return arrival_count(self.provider)

    def forget(self) -> None:
        """Start the next phase with no arrivals."""
        urllib.request.urlopen(urllib.request.Request(f"{self.provider}/arrivals", method="DELETE"), timeout=10).close()


def arrival_count(provider: str) -> int:
    """How many messages the bare provider at a URL has."""
    with urllib.request.urlopen(f"{provider}/count", timeout=60) as answer:
        return int(answer.read())


def body(channel: str, user: int, lane: str) -> dict[str, Any]:
    """A request to a user."""
    return {
        "to": {"user_id": f"u{user}"},
        "channels": [channel],
        "template": {"id": data.TEMPLATE},
        "data": data.ORDER,
        "priority": lane,
    }


def prepare(bench: Bench) -> None:
    """The template over HTTP, the users' profiles on their topic."""
    headers = {"Authorization": f"Bearer {bench.endpoints['api_key']}", "Content-Type": "application/json"}
    url, template = f"{bench.endpoints['api']}/v1/templates", json.dumps(data.example()).encode()
    urllib.request.urlopen(urllib.request.Request(url, template, headers), timeout=30).close()
    producer = Producer(KafkaSettings(bootstrap_servers=bench.endpoints["kafka"]), client_id="bench")
    for records in data.profiles(bench.endpoints["tenant"], bench.users):
        producer.publish(records)
    producer.close()


def settled(bench: Bench) -> dict[str, int]:
    """Notifications of the bench, as ClickHouse accounts for them."""
    client = clickhouse.connect(ClickHouseSettings(url=bench.endpoints["clickhouse"]))
    try:
        rows = client.query(
            "SELECT sum(accepted), sum(accepted) - sum(in_flight), sum(residual) FROM v_accounting"
        ).result_rows
    finally:
        client.close()
    return dict(zip(("accepted", "settled", "residual"), map(int, rows[0]), strict=True))


def wait_for(bench: Bench, published: Mapping[str, float]) -> dict[str, float]:
    """When each recipient's message arrived, once all are there and settled. Raises WrongRunError."""
    bench.accepted += len(published)
    deadline = time.monotonic() + PATIENCE_S
    while bench.count() < len(published) and time.monotonic() < deadline:
        time.sleep(0.1)
    while (counts := settled(bench))["settled"] < bench.accepted and time.monotonic() < deadline:
        time.sleep(0.5)
    arrived = bench.arrivals()
    missing, twice = published.keys() - arrived.keys(), [to for to, times in arrived.items() if len(times) > 1]
    if missing or twice or counts != {"accepted": bench.accepted, "settled": bench.accepted, "residual": 0}:
        raise WrongRunError(
            f"{len(missing)} of {len(published)} did not arrive, {len(twice)} arrived twice; of {bench.accepted} in all "
            f"ClickHouse says {counts}"
        )
    return {to: times[0] for to, times in arrived.items()}


def _cpu(bench: Bench) -> dict[str, float]:
    return {name: cpu_s(tree(pid)) for name, pid in bench.processes.items()}


@dataclass(frozen=True, slots=True)
class Drained:
    """What a backlog took."""

    messages: int
    per_second: float
    """First publish to last arrival."""
    arrivals_per_second: float
    published_per_second: float
    memory_mib: float
    """PSS of the product."""
    cpu_us: Mapping[str, float]
    """Per message, by process."""

    @property
    def product_cpu_us(self) -> float:
        return sum(used for name, used in self.cpu_us.items() if name.startswith(OURS))


def drain(bench: Bench, channel: str, messages: int, lane: str = "normal") -> Drained:
    """All at once, to as many users. Raises WrongRunError."""
    bench.forget()
    before, started = _cpu(bench), time.time()
    bench.out.publish_many(Publication(body(channel, user, lane)) for user in range(messages))
    done_publishing = time.time()
    published = dict.fromkeys((data.address(channel, user) for user in range(messages)), started)
    arrived = wait_for(bench, published)
    spent = {name: after - before[name] for name, after in _cpu(bench).items()}
    last, first = max(arrived.values()), min(arrived.values())
    return Drained(
        messages,
        messages / (last - started),
        messages / (last - first),
        messages / (done_publishing - started),
        sum(pss_mib(tree(pid)) for name, pid in bench.processes.items() if name.startswith(OURS)),
        {name: used / messages * 1e6 for name, used in spent.items()},
    )


def table(drained: Drained) -> list[dict[str, Any]]:
    """Rows to show."""
    rows = [
        {"what": "messages/s, first publish to last arrival", "figure": round(drained.per_second)},
        {"what": "messages/s, first arrival to last", "figure": round(drained.arrivals_per_second)},
        {"what": "messages/s published", "figure": round(drained.published_per_second)},
        {"what": "memory of the product, MiB (PSS)", "figure": round(drained.memory_mib)},
        {"what": "CPU µs a message, the product", "figure": round(drained.product_cpu_us)},
    ]
    rows += [
        {"what": f"  {name}{'' if name.startswith(OURS) else ' (apart)'}", "figure": round(used)}
        for name, used in sorted(drained.cpu_us.items(), key=lambda it: -it[1])
        if used >= 0.5
    ]
    return rows


def waits(bench: Bench, channel: str, rate: float, seconds: float, lane: str = "normal") -> list[float]:
    """Requests at moments fixed before: milliseconds from then to the arrival of each. Raises WrongRunError."""
    bench.forget()
    published = steady(bench, channel, rate, seconds, lane)
    arrived = wait_for(bench, published)
    return [(arrived[to] - at) * 1000 for to, at in published.items()]


def blast(bench: Bench, channel: str, bulk: int, rate: float, seconds: float) -> list[float]:
    """The same on the critical lane while so many bulk messages are queued; the waits of the critical ones."""
    bench.forget()
    now = time.time()
    bench.out.publish_many(Publication(body(channel, user, "bulk")) for user in range(bulk))
    queued = {data.address(channel, user): now for user in range(bulk)}
    published = steady(bench, channel, rate, seconds, "critical", first=bulk)
    arrived = wait_for(bench, {**queued, **published})
    return [(arrived[to] - at) * 1000 for to, at in published.items()]


def steady(bench: Bench, channel: str, rate: float, seconds: float, lane: str, first: int = 0) -> dict[str, float]:
    """Publish to the users from `first` on, at moments fixed before; when each was due, by address."""
    count = min(int(rate * seconds), bench.users - first)
    published: dict[str, float] = {}
    started = time.time()
    user = 0
    while user < count:
        due = min(count, int((time.time() - started) * rate) + 1)
        if due > user:
            bench.out.publish_many(Publication(body(channel, first + n, lane)) for n in range(user, due))
            published |= {data.address(channel, first + n): started + n / rate for n in range(user, due)}
            user = due
        time.sleep(max(0.0, min(0.002, started + user / rate - time.time())))
    return published


@dataclass(frozen=True, slots=True)
class BareProvider:
    """A running bench.bare_provider."""

    pid: int
    smtp_port: int
    url: str


def providers(bare: BareProvider, directory: Path) -> list[dict[str, Any]]:
    """The bare provider under every channel; FCM's key file is made in the directory."""
    http, credentials = bare.url, directory / "fcm-credentials.json"
    Credentials.load_or_create(credentials, f"{http}/token")
    mail = {
        "kind": "smtp",
        "host": LOOPBACK,
        "port": bare.smtp_port,
        "tls": "none",
        "from_address": "Shop <shop@example.org>",
    }
    text = {"kind": "twilio", "base_url": http, "account_sid": "AC" + "0" * 32, "auth_token": "bench"}
    push = {"kind": "fcm", "base_url": http, "credentials_file": str(credentials), "project_id": "bench"}
    return [
        {"name": "bare-mail", "channel": "email", **mail},
        {"name": "bare-text", "channel": "sms", "from": "+15005550006", **text},
        {"name": "bare-push", "channel": "push", **push},
    ]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


@contextmanager
def bare_provider() -> Iterator[BareProvider]:
    """In a process of its own, which ends with the block."""
    book = PortBook()
    smtp, http = book.reserve("bare-smtp"), book.reserve("bare-http")
    command = [sys.executable, "-m", "bench.bare_provider", "--smtp-port", str(smtp), "--http-port", str(http)]
    with subprocess.Popen(command) as process:
        try:
            while not listens(http):
                if process.poll() is not None:
                    raise WrongRunError(f"the bare provider ended with {process.returncode}")
                time.sleep(0.05)
            yield BareProvider(process.pid, smtp, f"http://{LOOPBACK}:{http}")
        finally:
            process.terminate()
            book.close()


@contextmanager
def running(users: int, engine: str | None = None, processes: Mapping[str, int] | None = None) -> Iterator[Bench]:
    """A stack of its own whose providers take everything; `processes` as for `heliograph up`."""
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as name, bare_provider() as bare:
        directory = Path(name)
        files = StateFiles(directory)
        config = directory / "bench.toml"
        tables: dict[str, Any] = {"providers": providers(bare, directory)}
        if engine is not None:
            tables["router"] = {"engine": engine}
        config.write_text(to_toml(tables))
        started = stack.up(directory, detach=True, config=config, processes=processes)
        try:
            recorded = {role: it.pid for role, it in files.recorded().items() if role != "supervisor"}
            kafka = KafkaSettings(bootstrap_servers=started.endpoints["kafka"])
            with Publisher(kafka, tenant=started.endpoints["tenant"], source="bench") as out:
                bench = Bench(started.endpoints, bare.url, users, {**recorded, "provider": bare.pid}, out)
                prepare(bench)
                yield bench
        finally:
            stack.down(directory)
            if started.process is not None:
                started.process.wait(20)


def warm(bench: Bench, channel: str) -> None:
    """A few of each lane, until they have arrived: groups have joined, views have the users."""
    for lane in ("normal", "critical"):
        waits(bench, channel, 50, 4, lane)


def run(options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """The tables of a run."""
    blast_users = options.blast + int(BLAST_RATE * options.seconds) + 1
    users = max([options.messages, blast_users, *(int(_rate(text)[0] * options.seconds) + 1 for text in options.rates)])
    with running(users, options.engine, process_counts(options.processes)) as bench:
        warm(bench, options.channel)
        tables = [table(drain(bench, options.channel, options.messages))] if options.messages else []
        if options.blast:
            tables.append(blasted(bench, options.channel, options.blast, options.seconds, options.rounds))
        rows = []
        for text in options.rates:
            rate, lane = _rate(text)
            found = waits(bench, options.channel, rate, options.seconds, lane)
            p50, p99 = (round(quantile(found, share), 1) for share in (0.5, 0.99))
            rows.append({"lane": lane, "per_second": round(rate), "messages": len(found), "p50_ms": p50, "p99_ms": p99})
        return [*tables, rows] if rows else tables


def blasted(bench: Bench, channel: str, bulk: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Critical messages at BLAST_RATE, idle and while a blast of the bulk lane drains, in turns."""
    rows = []
    for _ in range(rounds):
        idle = waits(bench, channel, BLAST_RATE, seconds, "critical")
        for name, found in (("idle", idle), (f"{bulk:,} bulk", blast(bench, channel, bulk, BLAST_RATE, seconds))):
            p50, p99 = (round(quantile(found, share), 1) for share in (0.5, 0.99))
            of_idle = round(p99 / quantile(idle, 0.99), 2)
            rows.append(
                {"critical": name, "messages": len(found), "p50_ms": p50, "p99_ms": p99, "p99_of_idle": of_idle}
            )
    return rows


def _rate(text: str) -> tuple[float, str]:
    """`critical@200` is 200 a second on the critical lane."""
    lane, separator, rate = text.rpartition("@")
    return float(rate), lane if separator else "normal"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channel", choices=data.CHANNELS, default="email")
    parser.add_argument("--engine", choices=["faust", "loop"], default=None)
    parser.add_argument("--messages", type=int, default=30_000, help="0: no backlog to drain")
    parser.add_argument("--processes", nargs="*", default=[], metavar="[ROLE=]N", help="as for `heliograph up`")
    parser.add_argument("--rates", nargs="*", default=[], help="messages a second: 10 400 critical@200")
    parser.add_argument("--blast", type=int, default=0, metavar="N", help="critical messages beside so many of bulk")
    parser.add_argument("--rounds", type=int, default=3, help="of the blast")
    parser.add_argument("--seconds", type=float, default=30)
    for table in run(parser.parse_args(arguments)):
        show(table, as_json=False)


if __name__ == "__main__":
    main()
