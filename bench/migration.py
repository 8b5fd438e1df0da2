"""The migration of an earlier release's store at size: `python -m bench.migration --rows 10000000`.

Makes a store of that release (or takes the one in `--state-dir`), migrates it while a sink of that release goes on inserting
rows of a tenant of its own, and prints how long it took, how long an insert took at most meanwhile, and the checksum of each
view before and after, over the columns whose meaning is the same in both; of the other tenants alone, and over all that was
inserted beside.
May import sinks, runtime and the tests' earlier store. Never: an assertion about a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.client import Client

from bench.sink import STEP_MS, Records, in_records, multiply, running_engine
from console.commands.output import show
from runtime.errors import HeliographError
from runtime.settings import ClickHouseSettings
from schemas.events import states
from sinks import clickhouse, schema
from tests.support.earlier_store import RELEASED, insert_as_earlier, make_earlier_store

BESIDE = "beside"
VIEWS = {
    "requests": "notification_id, tenant, accepted_at, lane, template_id, tags, user_id, expires_at, send_at",
    "delivery_events": "event_id, notification_id, message_id, state, reason, detail, attempt, provider, occurred_at, latency_ms",
    "message_state": (
        "message_id, notification_id, tenant, channel, lane, state, reason, detail, provider, provider_message_id, accepted_at, "
        "settled_at, possible_duplicate, sent_at, delivered_at, last_event_at, template_id, template_version, engagement, hour"
    ),
    "notification_state": (
        "notification_id, tenant, state, reason, channel, provider, accepted_at, settled_at, possible_duplicate, lane, messages, "
        "accepted, last_event_at"
    ),
    "v_accounting": f"tenant, hour, accepted, in_flight, {', '.join(states().settled)}",
}
PER_INSERT = 5_000


def checksums(client: Client, tenants: str) -> dict[str, tuple[int, int]]:
    """View → rows, and a checksum that no order changes."""
    found = {}
    for view, columns in VIEWS.items():
        ((rows, total),) = client.query(
            f"SELECT count(), sum(cityHash64(toString(tuple({columns})))) FROM {view} WHERE {tenants}"
        ).result_rows
        found[view] = (int(rows), int(total))
    return found


class Sink:
    """A sink of the earlier release: one thread that inserts batches until it is stopped."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.batches: list[Sequence[Any]] = []
        self.slowest_s = 0.0
        self.refused = 0

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        client = clickhouse.connect(self._settings, timeout_s=300)
        facts = Records(99, {BESIDE: 100}).facts(time.time_ns() // 1_000_000 - 86_400_000)
        while not self._stopped.is_set():
            batch, done = in_records(facts, PER_INSERT), False
            while not done:
                began = time.perf_counter()
                try:
                    insert_as_earlier(self._settings, client, batch)
                    done = True
                except HeliographError:
                    self.refused += 1
                    time.sleep(0.2)  # as a sink does: the same batch again
                self.slowest_s = max(self.slowest_s, time.perf_counter() - began)
            self.batches.append(batch)
            self._stopped.wait(0.5)
        client.close()


def fill(settings: ClickHouseSettings, rows: int, through: int) -> None:
    """A store of the earlier release with that many rows: `through` of them inserted, the rest copies."""
    make_earlier_store(settings)
    client = clickhouse.connect(settings, timeout_s=300)
    through = min(rows, through)
    facts = Records(1).facts(time.time_ns() // 1_000_000 - through * STEP_MS * 10 // 36)
    for at in range(0, through, 100_000):
        insert_as_earlier(settings, client, in_records(facts, min(100_000, through - at)))
    multiply(client, rows // through, through * STEP_MS * 10 // 36 + 60_000)
    client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--through", type=int, default=500_000, help="of them inserted, the rest are copies")
    parser.add_argument("--state-dir", type=Path, help="keep the engine's data here, and use what is there")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        running_engine(arguments.state_dir or Path(name)) as (settings, engine),
    ):
        server = clickhouse.connect(settings, database="default")
        if not server.query("EXISTS DATABASE heliograph").result_rows[0][0]:
            fill(settings, arguments.rows, arguments.through)
        server.close()
        client = clickhouse.connect(settings, timeout_s=600)
        ((rows,),) = client.query("SELECT sum(rows) FROM system.parts WHERE active AND table LIKE '%_raw'").result_rows
        ((ran,),) = client.query("SELECT max(number) FROM schema_migrations").result_rows
        sys.stdout.write(f"{int(rows):,} rows, {ran} of {RELEASED} migrations\n")
        others, own = f"tenant != '{BESIDE}'", f"tenant = '{BESIDE}'"
        before = checksums(client, others)
        with Sink(settings) as sink:
            time.sleep(2)
            began, cpu = time.perf_counter(), sum(engine.cpu_times()[:2])
            done = schema.migrate(settings)
            seconds, cpu = time.perf_counter() - began, sum(engine.cpu_times()[:2]) - cpu
            ((waiting,),) = client.query("SELECT count() FROM system.mutations WHERE NOT is_done").result_rows
            time.sleep(2)
        after = checksums(client, others)
        result = {
            "rows": int(rows),
            "steps": len(done),
            "seconds": round(seconds, 1),
            "engine_cpu_s": round(cpu, 1),
            "mutations_left": int(waiting),
            "inserts_beside": len(sink.batches),
            "refused": sink.refused,
            "slowest_insert_s": round(sink.slowest_s, 1),
        }
        show([result], as_json=False)
        # What was inserted meanwhile is what it is when it is inserted once more, now.
        beside = checksums(client, own)
        for batch in sink.batches:
            insert_as_earlier(settings, client, batch)
        again = checksums(client, own)
        show(
            [
                {
                    "view": view,
                    "rows": before[view][0],
                    "before": before[view][1],
                    "after": after[view][1],
                    "equal": before[view] == after[view],
                    "beside": beside[view][0],
                    "beside_equal": beside[view] == again[view],
                }
                for view in VIEWS
            ],
            as_json=False,
        )
        client.close()


if __name__ == "__main__":
    main()
