"""From a published request to the provider, everything included: `python -m bench.e2e --channel email --messages 30000`.

A local stack of its own (Kafka, PostgreSQL, ClickHouse's engine, every role) with bench.bare_provider as the provider. Each
request names a user and a template; mails have a text and an HTML part. Acks from all replicas, fsync, claims, the ledger and the
re-check before sending are on, as by default.

    drain       --messages at once: messages/s from the first publish to the last arrival, and CPU µs a message by process
                until all are settled in ClickHouse
    latency     --rates, each for --seconds: published to arrived, p50 and p99; `critical@R` publishes on the critical lane

Every phase counts: published = arrived once = settled as sent, residual 0; a run that does not is an error, not a figure.
May import every layer. Never: a figure whose messages are not all there.
"""

from __future__ import annotations

import argparse
import json
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

from bench.processes import cpu_s, pss_mib, tree
from bench.sender import quantile
from console.commands.output import show
from local import stack
from local.ports import LOOPBACK, PortBook
from local.supervisor.layout import to_toml
from local.supervisor.state import StateFiles
from producers.publisher import Publication, Publisher
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import ClickHouseSettings, KafkaSettings
from schemas.channels import CHANNELS
from schemas.codec import codec
from schemas.topics import RECIPIENTS
from sinks import clickhouse

EXAMPLES = Path(__file__).parent.parent / "examples" / "templates.json"
TEMPLATE = "order-shipped"
DATA = {
    "name": "Ada",
    "order": "A-677141",
    "items": [{"title": "éclair tin", "quantity": 5}, {"title": "折り紙セット", "quantity": 3}],
    "total": 243.4,
    "currency": "GBP",
}
OURS = ("sender-", "router-", "kafka", "clickhouse", "relay", "sink", "postgres", "api", "timers", "callbacks")
"""Processes of the product; the provider, the publisher and what only the local stack has are listed apart."""
PATIENCE_S = 180.0


class WrongRunError(Exception):
    """Something was lost, doubled or not settled: there is no figure."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a phase needs."""

    endpoints: Mapping[str, Any]
    provider: str
    channel: str
    users: int
    processes: Mapping[str, int]
    """The root of each process tree, by name."""

    def arrivals(self) -> dict[str, list[float]]:
        """When each recipient's messages arrived."""
        with urllib.request.urlopen(f"{self.provider}/arrivals", timeout=60) as answer:
            found: dict[str, list[float]] = json.load(answer)
        return found

    def count(self) -> int:
        """How many messages have arrived."""
        with urllib.request.urlopen(f"{self.provider}/count", timeout=60) as answer:
            return int(answer.read())

    def forget(self) -> None:
        """Start the next phase with no arrivals."""
        urllib.request.urlopen(urllib.request.Request(f"{self.provider}/arrivals", method="DELETE"), timeout=10).close()

    def address(self, user: int) -> str:
        """Of the channel."""
        return {"email": f"u{user}@example.org", "sms": f"+4915{user:09d}", "push": f"token-{user}"}[self.channel]

    def body(self, user: int, lane: str) -> dict[str, Any]:
        """A request to a user."""
        return {
            "to": {"user_id": f"u{user}"},
            "channels": [self.channel],
            "template": {"id": TEMPLATE},
            "data": DATA,
            "priority": lane,
        }


def _profile(bench: Bench, tenant: str, user: int) -> ProducerRecord:
    token = [{"platform": "fcm", "token": bench.address(user), "subscription": None}] if bench.channel == "push" else []
    value: dict[str, Any] = {
        "tenant": tenant,
        "user_id": f"u{user}",
        "name": "Ada",
        "email": bench.address(user) if bench.channel == "email" else None,
        "phone": bench.address(user) if bench.channel == "sms" else None,
        "locale": "en",
        "time_zone": None,
        "devices": token,
        "channels": {},
        "categories": {},
        "version": 1,
        "updated_at": 1,
    }
    return ProducerRecord(RECIPIENTS, f"{tenant}:u{user}".encode(), codec("RecipientProfile").encode(value))


def prepare(bench: Bench) -> None:
    """The template over HTTP, the users' profiles on their topic."""
    template = next(it for it in json.loads(EXAMPLES.read_bytes()) if it["id"] == TEMPLATE)
    headers = {"Authorization": f"Bearer {bench.endpoints['api_key']}", "Content-Type": "application/json"}
    url, body = f"{bench.endpoints['api']}/v1/templates", json.dumps(template).encode()
    urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30).close()
    producer = Producer(KafkaSettings(bootstrap_servers=bench.endpoints["kafka"]), client_id="bench")
    tenant = bench.endpoints["tenant"]
    for first in range(0, bench.users, 5_000):
        last = min(first + 5_000, bench.users)
        producer.publish([_profile(bench, tenant, user) for user in range(first, last)])
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


def wait_for(bench: Bench, published: Mapping[str, float], accepted: int) -> dict[str, float]:
    """When each recipient's message arrived, once all are there and settled. Raises WrongRunError."""
    deadline = time.monotonic() + PATIENCE_S
    while bench.count() < len(published) and time.monotonic() < deadline:
        time.sleep(0.1)
    while (counts := settled(bench))["settled"] < accepted and time.monotonic() < deadline:
        time.sleep(0.5)
    arrived = bench.arrivals()
    missing, twice = published.keys() - arrived.keys(), [to for to, times in arrived.items() if len(times) > 1]
    if missing or twice or counts != {"accepted": accepted, "settled": accepted, "residual": 0}:
        raise WrongRunError(f"{len(missing)} did not arrive, {len(twice)} arrived twice, ClickHouse says {counts}")
    return {to: times[0] for to, times in arrived.items()}


def _cpu(bench: Bench) -> dict[str, float]:
    return {name: cpu_s(tree(pid)) for name, pid in bench.processes.items()}


def drain(bench: Bench, messages: int, lane: str, accepted: int) -> list[dict[str, Any]]:
    """All at once."""
    before, started = _cpu(bench), time.time()
    with _publisher(bench) as out:
        out.publish_many(Publication(bench.body(user, lane)) for user in range(messages))
    done_publishing = time.time()
    published = dict.fromkeys(map(bench.address, range(messages)), started)
    arrived = wait_for(bench, published, accepted + messages)
    spent = {name: after - before[name] for name, after in _cpu(bench).items()}
    took = max(arrived.values()) - started
    first = min(arrived.values())
    memory = sum(pss_mib(tree(pid)) for name, pid in bench.processes.items() if name.startswith(OURS))
    micros = {name: used / messages * 1e6 for name, used in spent.items()}
    rows = [
        {"what": "messages/s, first publish to last arrival", "figure": round(messages / took)},
        {"what": "messages/s, first arrival to last", "figure": round(messages / (max(arrived.values()) - first))},
        {"what": "messages/s published", "figure": round(messages / (done_publishing - started))},
        {"what": "memory of the product, MiB (PSS)", "figure": round(memory)},
        {"what": "CPU µs a message, the product", "figure": round(_product(micros))},
    ]
    rows += [
        {"what": f"  {name}{'' if name.startswith(OURS) else ' (apart)'}", "figure": round(used)}
        for name, used in sorted(micros.items(), key=lambda it: -it[1])
        if used >= 0.5
    ]
    return rows


def _product(micros: Mapping[str, float]) -> float:
    return sum(used for name, used in micros.items() if name.startswith(OURS))


def latency(bench: Bench, rate: float, seconds: float, lane: str, accepted: int) -> tuple[int, dict[str, Any]]:
    """Requests at moments fixed before; how many, and the row."""
    count = min(int(rate * seconds), bench.users)
    published: dict[str, float] = {}
    bench.forget()
    with _publisher(bench) as out:
        started = time.time()
        user = 0
        while user < count:
            due = min(count, int((time.time() - started) * rate) + 1)
            if due > user:
                moments = {bench.address(n): started + n / rate for n in range(user, due)}
                out.publish_many(Publication(bench.body(n, lane)) for n in range(user, due))
                published |= moments
                user = due
            time.sleep(max(0.0, min(0.002, started + user / rate - time.time())))
    arrived = wait_for(bench, published, accepted + count)
    waits = [(arrived[to] - at) * 1000 for to, at in published.items()]
    p50, p99 = (round(quantile(waits, share), 1) for share in (0.5, 0.99))
    return count, {"lane": lane, "per_second": round(rate), "messages": count, "p50_ms": p50, "p99_ms": p99}


@contextmanager
def _publisher(bench: Bench) -> Iterator[Publisher]:
    kafka = KafkaSettings(bootstrap_servers=bench.endpoints["kafka"])
    with Publisher(kafka, tenant=bench.endpoints["tenant"], source="bench") as out:
        yield out


def _providers(smtp_port: int, http: str, credentials: Path) -> list[dict[str, Any]]:
    """The bare provider under every channel."""
    mail = {
        "kind": "smtp",
        "host": LOOPBACK,
        "port": smtp_port,
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


@contextmanager
def running(channel: str, users: int, engine: str | None) -> Iterator[Bench]:
    """A stack of its own whose providers take everything."""
    book = PortBook()
    smtp, http = book.reserve("bare-smtp"), book.reserve("bare-http")
    command = [sys.executable, "-m", "bench.bare_provider", "--smtp-port", str(smtp), "--http-port", str(http)]
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as name, subprocess.Popen(command) as provider:
        directory, url = Path(name), f"http://{LOOPBACK}:{http}"
        files = StateFiles(directory)
        config = directory / "bench.toml"
        tables: dict[str, Any] = {"providers": _providers(smtp, url, files.data("simulator") / "fcm-credentials.json")}
        if engine is not None:
            tables["router"] = {"engine": engine}
        config.write_text(to_toml(tables))
        started = stack.up(directory, detach=True, config=config)
        try:
            recorded = {role: it.pid for role, it in files.recorded().items() if role != "supervisor"}
            processes = {**recorded, "provider": provider.pid}
            bench = Bench(started.endpoints, url, channel, users, processes)
            prepare(bench)
            yield bench
        finally:
            stack.down(directory)
            if started.process is not None:
                started.process.wait(20)
            provider.terminate()
            book.close()


def warm(bench: Bench, accepted: int = 0) -> int:
    """A few of each lane, until they have arrived: groups have joined, views have the users."""
    count = 0
    for lane in ("normal", "critical"):
        sent, _ = latency(bench, 50, 4, lane, accepted + count)
        count += sent
    bench.forget()
    return count


def run(options: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """The tables of a run."""
    users = max([options.messages, *(int(_rate(text)[0] * options.seconds) + 1 for text in options.rates)])
    with running(options.channel, users, options.engine) as bench:
        accepted = warm(bench)
        tables = [drain(bench, options.messages, "normal", accepted)]
        accepted += options.messages
        rows = []
        for text in options.rates:
            rate, lane = _rate(text)
            count, row = latency(bench, rate, options.seconds, lane, accepted)
            accepted += count
            rows.append(row)
        return [*tables, rows] if rows else tables


def _rate(text: str) -> tuple[float, str]:
    """`critical@200` is 200 a second on the critical lane."""
    lane, separator, rate = text.rpartition("@")
    return float(rate), lane if separator else "normal"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channel", choices=CHANNELS, default="email")
    parser.add_argument("--engine", choices=["faust", "loop"], default=None)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--rates", nargs="*", default=[], help="messages a second: 10 400 critical@200")
    parser.add_argument("--seconds", type=float, default=30)
    for table in run(parser.parse_args(arguments)):
        show(table, as_json=False)


if __name__ == "__main__":
    main()
