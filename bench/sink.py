"""The sink at size: `python -m bench.sink --rows 10000000`.

Makes plausible records (a request, its messages' facts; seeded), and prints

    path     rows/s of the sink's code, one batch after the other, and the CPU it takes
    queries  milliseconds of what dashboards and the API ask, with all those rows in the store
    kafka    rows/s of `run sink` over a backlog on a broker of its own, inserts per second and table, and whether dropping
             the database and reading from offset 0 gives every view row for row (`--kafka-records`, 0 leaves it out)

May import sinks, console and runtime. Never: an assertion about a time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
from clickhouse_connect.driver.client import Client

from bench.broker import broker
from console.commands.output import show
from local.ports import LOOPBACK, PortBook
from runtime import ids
from runtime.clock import system_monotonic
from runtime.kafka.producer import Producer
from runtime.records import ConsumerRecord, ProducerRecord, group_by_partition
from runtime.settings import ClickHouseSettings, KafkaSettings
from schemas.codec import codec
from schemas.container import long_bytes
from schemas.events import DeliveryStatus, NotificationRequest
from schemas.identity import hour_of
from schemas.topics import STATUS, requests_topic
from sinks import clickhouse, schema
from sinks.batching import Batch
from sinks.hours import HourlySums
from sinks.role import GROUP
from sinks.rows import EVENTS_TABLE, REQUESTS_TABLE
from sinks.storing import store_batch

TENANTS = {"default": 70, "shop": 15, "bank": 10, "press": 5}
"""Name → percent of the notifications."""
STEP_MS = 250
"""Between two acceptances: ten million rows are a week."""
_NID, _MID, _EID = (f"{digit * 8}-0000-7000-8000-{digit * 12}" for digit in "123")
_AT, _USER = 1_600_000_000_000, "user-00000000"
_CHANNELS = ("email", "email", "email", "push", "push", "sms")
_ENDS: tuple[tuple[str, str | None], ...] = (
    *[("sent", None)] * 90,
    *[("bounced", "hard_bounce")] * 3,
    *[("failed", "retries_exhausted")] * 2,
    *[("rejected", "provider_rejected")] * 5,
)
_DECISIONS = (("skipped", "opted_out"), ("skipped", "no_address"), ("suppressed", "suppressed_address"))


# ---------------------------------------------------------------- records


_AT_BYTES = long_bytes(_AT)


class Records:
    """Records as producers publish them: each kind is encoded once, then ids and times are put in place."""

    def __init__(self, seed: int = 7, tenants: Mapping[str, int] = TENANTS) -> None:
        self._rng, self._tenants = random.Random(seed), tenants
        self._encoded: dict[tuple[Any, ...], bytes] = {}

    def _id(self) -> bytes:
        digits = f"{self._rng.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-a{digits[17:20]}-{digits[20:]}".encode()

    def _request(self, tenant: str) -> bytes:
        request: NotificationRequest = {
            "notification_id": _NID,
            "tenant": tenant,
            "accepted_at": _AT,
            "user_id": _USER,
            "template_id": "order-shipped",
            "category": "orders",
            "tags": ["bench"],
            "source": "http",
            "data": b'{"order": "A1", "name": "Recipient Number 1", "url": "https://shop.example/orders/A1"}',
            "correlation_id": _MID,
        }
        return codec("NotificationRequest").encode(request)

    def _status(self, tenant: str, channel: str, state: str, reason: str | None, attempt: int) -> bytes:
        provider = f"{channel}-1" if attempt else None
        status: DeliveryStatus = {
            "event_id": _EID,
            "notification_id": _NID,
            "message_id": _MID,
            "tenant": tenant,
            "channel": channel,
            "lane": "normal",
            "state": state,
            "reason": reason,
            "detail": "451 4.7.1" if reason else None,
            "attempt": attempt,
            "provider": provider,
            "provider_message_id": f"<{_EID}@mail>" if provider else None,
            "possible_duplicate": False,
            "template_id": "order-shipped",
            "template_version": 3,
            "preference_version": 1_700_000,
            "occurred_at": _AT,
            "latency_ms": 87 if provider else None,
            "source": {"topic": f"notify.dispatch.{channel}.normal.v1", "partition": 1, "offset": 7_654_321},
            "correlation_id": _MID,
            "recipient": _USER,
            "opted_out": False,
            "invalid_since": None,
            "category": "orders",
            "locale": "de" if state == "routed" else None,
            "domain": "mail.example" if channel == "email" else None,
            "code": "451 4.7.1" if reason else None,
            "due_at": None,
        }
        return codec("DeliveryStatus").encode(status)

    def facts(self, first_ms: int) -> Iterator[tuple[str, bytes, bytes]]:
        """(topic, key, value) of one notification after the other, 3.6 records each; endless, in the order of time."""
        rng, topic = self._rng, requests_topic("normal")
        number = 0
        while True:
            at = first_ms + number * STEP_MS
            number += 1
            tenant = rng.choices(list(self._tenants), list(self._tenants.values()))[0]
            user = f"user-{rng.randrange(100_000):08d}".encode()
            nid = ids.notification_id(at, tenant, str(number)).encode()
            yield topic, tenant.encode() + b":" + user, self._of(("request", tenant), nid, self._id(), user, at)
            for key, after in self._journey(tenant):
                yield STATUS, nid, self._of(key, nid, self._mid, user, at + after)

    def _of(self, key: tuple[Any, ...], nid: bytes, mid: bytes, user: bytes, at: int) -> bytes:
        value = self._encoded.get(key)
        if value is None:
            value = self._encoded[key] = self._request(key[1]) if key[0] == "request" else self._status(*key)
        value = value.replace(_NID.encode(), nid).replace(_MID.encode(), mid).replace(_EID.encode(), self._id())
        return value.replace(_USER.encode(), user).replace(_AT_BYTES, long_bytes(at))

    def _journey(self, tenant: str) -> Iterator[tuple[tuple[Any, ...], int]]:
        """The facts of one message and how long after the acceptance each is."""
        rng = self._rng
        channel, self._mid = rng.choice(_CHANNELS), self._id()
        if rng.random() < 0.06:
            yield (tenant, channel, *rng.choice(_DECISIONS), 0), 40
            return
        yield (tenant, channel, "routed", None, 0), 40
        attempt = 1
        while rng.random() < 0.04:
            yield (tenant, channel, "retrying", None, attempt), 100 + 2_000 * attempt
            attempt += 1
        state, reason = rng.choice(_ENDS)
        yield (tenant, channel, state, reason, attempt), 90 + 2_000 * attempt
        if state == "sent" and rng.random() < 0.7:
            yield (tenant, channel, "delivered", None, attempt), 900 + 2_000 * attempt


def in_records(facts: Iterator[tuple[str, bytes, bytes]], count: int) -> list[ConsumerRecord]:
    """As they come from a broker, topic by topic."""
    records = [ConsumerRecord(topic, 0, 0, 0, key, value) for topic, key, value in islice(facts, count)]
    return sorted(records, key=lambda record: record.topic)


# ---------------------------------------------------------------- the engine


@contextmanager
def running_engine(directory: Path) -> Iterator[tuple[ClickHouseSettings, psutil.Process]]:
    """The embedded engine with data of its own."""
    book = PortBook()
    port = book.reserve("clickhouse")
    command = [sys.executable, "-m", "local.servers.clickhouse", "--path", str(directory), "--port", str(port)]
    url = f"http://{LOOPBACK}:{port}"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _until(lambda: _text(f"{url}/ping") is not None, 60, "the engine")
            yield ClickHouseSettings(url=url), psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)
            book.close()


def _text(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def _until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = system_monotonic() + timeout_s
    while not condition():
        if system_monotonic() > deadline:
            raise SystemExit(f"{what} did not come within {timeout_s:.0f} s")
        time.sleep(0.05)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def stream(
    url: str, rows: int, per_insert: int, number: int, ready: Barrier, timings: Queue[tuple[float, float, int, float]]
) -> None:
    """One process of the sink's code: its batches are made first, then stored; reports (began, ended, inserts, CPU s)."""
    settings = ClickHouseSettings(url=url)
    client = clickhouse.connect(settings, timeout_s=300)
    facts = Records(number).facts(_now() - (number + 1) * rows * STEP_MS * 10 // 36)
    batches = [group_by_partition(in_records(facts, min(per_insert, rows - at))) for at in range(0, rows, per_insert)]
    inserts = 0
    ready.wait()
    began, cpu = time.time(), time.process_time()
    for runs in batches:
        batch = Batch(max_rows=per_insert, max_bytes=1 << 40)
        batch.add(runs)
        inserts += store_batch(settings, client, batch)
    timings.put((began, time.time(), inserts, time.process_time() - cpu))


def fill(
    settings: ClickHouseSettings, engine: psutil.Process, rows: int, per_insert: int, sinks: int
) -> dict[str, Any]:
    """Insert that many records by so many processes; µs of CPU a row on both sides."""
    spawn = multiprocessing.get_context("spawn")
    ready, timings = spawn.Barrier(sinks + 1), spawn.Queue()
    each = rows // sinks
    streams = [
        spawn.Process(target=stream, args=(settings.url, each, per_insert, number, ready, timings))
        for number in range(sinks)
    ]
    for process in streams:
        process.start()
    ready.wait()
    engine_s = _cpu(engine)
    answers = [timings.get() for _ in streams]
    engine_s = _cpu(engine) - engine_s
    for process in streams:
        process.join()
    seconds = max(ended for _, ended, _, _ in answers) - min(began for began, *_ in answers)
    return {
        "sinks": sinks,
        "rows": each * sinks,
        "per_insert": per_insert,
        "rows_per_s": round(each * sinks / seconds),
        "sink_cpu_us": round(sum(cpu for *_, cpu in answers) / (each * sinks) * 1e6, 1),
        "engine_cpu_us": round(engine_s / (each * sinks) * 1e6, 1),
        "inserts": sum(inserts for _, _, inserts, _ in answers),
    }


def multiply(client: Client, times: int, span_ms: int) -> float:
    """Copy every row that often inside the engine, each copy `span_ms` earlier; seconds. Ids stay functions of their time."""
    started = time.perf_counter()
    for copy in range(1, times):
        back = copy * span_ms
        for table in (REQUESTS_TABLE, EVENTS_TABLE):
            moved = {
                "notification_id": (
                    f"toFixedString(concat(substring(reverse(reinterpretAsFixedString(toUInt64("
                    f"toUnixTimestamp64Milli(accepted_at) - {back}))), 3), substring(notification_id, 7)), 16)"
                ),
                "accepted_at": f"fromUnixTimestamp64Milli(toUnixTimestamp64Milli(accepted_at) - {back}, 'UTC')",
                "occurred_at": f"fromUnixTimestamp64Milli(toUnixTimestamp64Milli(occurred_at) - {back}, 'UTC')",
            }
            there = [str(row[0]) for row in client.query(f"DESCRIBE TABLE {table.name}").result_rows]
            columns = [name for name in table.columns if name in there]  # of an earlier release, too
            names = ", ".join(columns)
            values = ", ".join(moved.get(name, name) for name in columns)
            first = f"accepted_at >= (SELECT max(accepted_at) - INTERVAL {span_ms} MILLISECOND FROM {table.name})"
            client.command(f"INSERT INTO {table.name} ({names}) SELECT {values} FROM {table.name} WHERE {first}")
    return time.perf_counter() - started


def _now() -> int:
    return time.time_ns() // 1_000_000


# ---------------------------------------------------------------- queries


def measure(
    settings: ClickHouseSettings, client: Client, engine: psutil.Process, sample: Sequence[str]
) -> list[dict[str, Any]]:
    """Milliseconds of what is asked, and of them the engine's CPU."""
    rows = []

    def ask(name: str, run: Callable[[int], object], times: int) -> None:
        taken, engine_s = [], _cpu(engine)
        for turn in range(times):
            started = time.perf_counter()
            run(turn)
            taken.append((time.perf_counter() - started) * 1000)
        engine_s = _cpu(engine) - engine_s
        taken.sort()
        rows.append(
            {
                "query": name,
                "times": times,
                "p50_ms": round(taken[len(taken) // 2], 1),
                "p99_ms": round(taken[len(taken) * 99 // 100], 1),
                "engine_cpu_ms": round(engine_s * 1000 / times, 1),
            }
        )

    def of_one(name: str) -> Callable[[int], object]:
        def run(turn: int) -> object:
            nid = sample[turn * 7 % len(sample)]
            parameters = {"tenant": "default", "hour": hour_of(ids.accepted_at(nid))}
            nid_text = nid if name == "why" else nid.replace("-", "")
            return clickhouse.select(settings, client, name, {**parameters, "id": nid_text})

        return run

    def sql(text: str) -> Callable[[int], object]:
        return lambda turn: client.query(text)

    ask("events of one notification (API)", of_one("events"), 200)
    ask("request of one notification (API)", of_one("notification"), 200)
    ask("why of one notification", of_one("why"), 100)
    nid = sample[len(sample) // 2]
    ask("notification_state by UUID alone", sql(f"SELECT * FROM notification_state WHERE notification_id = '{nid}'"), 5)
    worker = HourlySums(settings)
    worker.round()
    ask("summing up the hours that changed", lambda turn: worker.round(), 1)
    worker.close()
    # The hour that runs is written to all the time.
    names = ", ".join(EVENTS_TABLE.columns)
    client.command(
        f"INSERT INTO {EVENTS_TABLE.name} ({names}) SELECT {names} FROM {EVENTS_TABLE.name} "
        f"WHERE hour = (SELECT max(hour) FROM {EVENTS_TABLE.name}) LIMIT 1 BY tenant"
    )
    day = "hour >= toStartOfHour(now()) - INTERVAL 23 HOUR"
    for view in ("v_accounting", "v_funnel", "v_latency", "v_failures", "v_provider_scorecard", "v_slo", "v_residual"):
        if clickhouse_has(client, view):
            ask(f"{view}, last 24 hours", sql(f"SELECT * FROM {view} WHERE {day}"), 5)
    for view in ("v_accounting", "v_failures", "v_provider_scorecard", "v_residual"):
        ask(f"{view}, everything", sql(f"SELECT * FROM {view}"), 1)
    return rows


_DAY = "accepted_at >= (SELECT max(accepted_at) - INTERVAL 1 DAY FROM requests_raw)"
HABITS = {
    "SELECT * FROM message_state LIMIT 100": "SELECT * FROM message_state LIMIT 100",
    "SELECT * FROM v_why LIMIT 100": "SELECT * FROM v_why LIMIT 100",
    "SELECT * FROM delivery_events LIMIT 100": "SELECT * FROM delivery_events LIMIT 100",
    "SELECT * FROM v_messages LIMIT 100": "SELECT * FROM v_messages LIMIT 100",
    "SELECT * FROM requests LIMIT 100": "SELECT * FROM requests LIMIT 100",
    "SELECT * FROM notification_state LIMIT 100": "SELECT * FROM notification_state LIMIT 100",
    "newest 100 of a day, message_state": f"SELECT * FROM message_state WHERE {_DAY} ORDER BY accepted_at DESC LIMIT 100",
    "newest 100 of a day, v_messages": f"SELECT * FROM v_messages WHERE {_DAY} ORDER BY accepted_at DESC LIMIT 100",
    "count of a day by accepted_at, message_state": f"SELECT count() FROM message_state WHERE {_DAY}",
    "count of a day by accepted_at, v_messages": f"SELECT count() FROM v_messages WHERE {_DAY}",
    "count of a day by accepted_at, requests": f"SELECT count() FROM requests WHERE {_DAY}",
    "a day by tag, v_messages": f"SELECT arrayJoin(tags) AS tag, state, count() FROM v_messages WHERE {_DAY} GROUP BY tag, state",
    "all days in a time zone, message_state": (
        "SELECT toDate(accepted_at, 'Europe/Berlin') AS day, count() FROM message_state GROUP BY day"
    ),
    "all days in a time zone, v_messages": (
        "SELECT toDate(accepted_at, 'Europe/Berlin') AS day, category, count() FROM v_messages GROUP BY day, category"
    ),
    "scorecard of a day": (
        "SELECT * FROM v_provider_scorecard WHERE hour >= (SELECT max(hour) - INTERVAL 23 HOUR FROM delivery_events_raw)"
    ),
    "minutes of an hour": (
        "SELECT * FROM v_minutes WHERE minute >= (SELECT max(occurred_at) - INTERVAL 1 HOUR FROM delivery_events_raw)"
    ),
}
"""What BI tools write of themselves: no hour, no tenant."""


def habits(client: Client, engine: psutil.Process) -> list[dict[str, Any]]:
    """Best of three: time, the engine's CPU (which other work on the machine hardly changes), and what was read."""
    rows = []
    for name, sql in HABITS.items():
        taken, burnt, read = [], [], 0
        for _ in range(3):
            started, engine_s = time.perf_counter(), _cpu(engine)
            read = int(client.query(sql).summary.get("read_bytes", 0))
            taken.append(time.perf_counter() - started)
            burnt.append(_cpu(engine) - engine_s)
        rows.append(
            {
                "habit": name,
                "s": round(min(taken), 2),
                "cpu_s": round(min(burnt), 2),
                "MB": read >> 20,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    return rows


def clickhouse_has(client: Client, view: str) -> bool:
    return bool(client.query(f"EXISTS {view}").result_rows[0][0])


# ---------------------------------------------------------------- through Kafka


VIEWS = (
    "requests",
    "delivery_events",
    "receipts",
    "dead_letters",
    "message_state",
    "notification_state",
    "v_accounting",
    "v_funnel",
    "v_why",
)


STORED = ("requests", "delivery_events", "receipts", "dead_letters")


def checksums(client: Client) -> dict[str, tuple[int, int]]:
    """Rows and an order-free checksum over every column of every view."""
    found = {}
    for view in VIEWS:
        # When a row was stored is of the run.
        row = "tuple(* EXCEPT (stored_at))" if view in STORED else "tuple(*)"
        ((count, total),) = client.query(f"SELECT count(), sum(cityHash64(toString({row}))) FROM {view}").result_rows
        found[view] = (int(count), int(total))
    return found


def publish(kafka: KafkaSettings, count: int) -> None:
    producer = Producer(kafka, client_id="bench")
    facts = Records().facts(_now() - count * STEP_MS * 10 // 36)
    done = 0
    while done < count:
        records = [ProducerRecord(*each) for each in islice(facts, min(20_000, count - done))]
        producer.publish(records)
        done += len(records)
    producer.close()


def sink_run(
    kafka: KafkaSettings, store: ClickHouseSettings, count: int, directory: Path, sinks: int
) -> dict[str, Any]:
    """Sink processes from their group's offsets to the end of the backlog."""
    book = PortBook()
    ports = [book.reserve(f"metrics-{number}") for number in range(sinks)]
    env = {
        **os.environ,
        "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "HELIOGRAPH_CLICKHOUSE__URL": store.url,
    }
    book.close()

    def metric(name: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for port in ports:
            text = _text(f"http://{LOOPBACK}:{port}/metrics") or ""
            for table, value in re.findall(rf'^{name}{{table="(\w+)"}} (\S+)$', text, re.M):
                found[table] += round(float(value))
        return found

    with (directory / "sink.log").open("ab") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "console.cli", "run", "sink"],
                stdout=log,
                stderr=log,
                env={**env, "HELIOGRAPH_METRICS__PORT": str(port)},
            )
            for port in ports
        ]
    try:
        _until(lambda: metric("heliograph_sink_rows_total").total() > 0, 120, "the first row")
        began, had = system_monotonic(), metric("heliograph_sink_rows_total").total()
        _until(lambda: metric("heliograph_sink_rows_total").total() >= count, 900, "the last row")
        seconds = system_monotonic() - began
        inserts = metric("heliograph_sink_insert_seconds_count")
        return {
            "sinks": sinks,
            "rows": count,
            "seconds": round(seconds, 1),
            "rows_per_s": round((count - had) / seconds),
            "inserts_per_s_and_table": {table: round(n / seconds, 2) for table, n in inserts.items() if n},
        }
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(30)


def through_kafka(store: ClickHouseSettings, count: int, directory: Path, sinks: int) -> list[dict[str, Any]]:
    """Two runs over the same backlog, the second into an empty database."""
    rows = []
    with broker(directory) as kafka:
        publish(kafka, count)
        rows.append({"run": "first", **sink_run(kafka, store, count, directory, sinks)})
        client = clickhouse.connect(store)
        before = checksums(client)
        client.command(f"DROP DATABASE `{store.database}`")
        client.close()
        reset(kafka)
        rows.append({"run": "recovery", **sink_run(kafka, store, count, directory, sinks)})
        client = clickhouse.connect(store)
        after = checksums(client)
        client.close()
        differing = [view for view in VIEWS if before[view] != after[view]]
        rows[1]["equal"] = "row for row" if not differing else f"differs: {', '.join(differing)}"
    return rows


def reset(kafka: KafkaSettings) -> None:
    """Forget how far the sink's group has read."""
    from confluent_kafka.admin import AdminClient  # noqa: TID251 # an operator's act, not a role's

    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for future in admin.delete_consumer_groups([GROUP]).values():
        future.result(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000, help="in the store when queries are measured")
    parser.add_argument(
        "--through", type=int, default=1_000_000, help="of them through the sink's code, the rest are copies"
    )
    parser.add_argument("--per-insert", type=int, default=200_000)
    parser.add_argument("--sinks", type=int, default=2, help="processes that insert")
    parser.add_argument("--kafka-records", type=int, default=3_000_000)
    parser.add_argument("--state-dir", type=Path, help="keep the engine's data here, and use what is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with running_engine(arguments.state_dir or directory / "clickhouse") as (settings, engine):
            schema.migrate(settings)
            client = clickhouse.connect(settings, timeout_s=300)
            ((there,),) = client.query("SELECT count() FROM delivery_events_raw").result_rows
            if not there:
                through = min(arguments.rows, arguments.through)
                show([fill(settings, engine, through, arguments.per_insert, arguments.sinks)], as_json=False)
                span_ms = through * STEP_MS * 10 // 36 + 60_000
                seconds = multiply(client, arguments.rows // through, span_ms)
                sys.stdout.write(f"copied to {arguments.rows:,} rows in {seconds:.0f} s\n")
            found = client.query(
                "SELECT notification_id FROM requests WHERE tenant = 'default' AND cityHash64(notification_id) % 500 = 0 "
                "LIMIT 500"
            )
            show(measure(settings, client, engine, [str(row[0]) for row in found.result_rows]), as_json=False)
            show(habits(client, engine), as_json=False)
            client.close()
        if arguments.kafka_records:
            with running_engine(directory / "recovery") as (settings, _):
                show(through_kafka(settings, arguments.kafka_records, directory, arguments.sinks), as_json=False)


if __name__ == "__main__":
    main()
