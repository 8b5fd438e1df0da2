"""What storing costs: a backlog of plausible records goes through one `run sink` into ClickHouse's engine, state views attached.

CPU µs a row of the sink, and of the engine beside it. Settled is what the sink has committed, sent what the tables have.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count as counter
from itertools import islice

from bench import data, profiles
from bench.case import Case, Contender, Measured, Scale, Trial
from bench.environments import environment
from bench.observe import Observed, observe, worker
from bench.sink import STEP_MS, Records, running_engine
from bench.world import World
from runtime.kafka.admin import Admin
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from schemas.topics import STATUS, requests_topic
from sinks import clickhouse, schema
from sinks.role import GROUP

POLL_S = 0.1
"""Between two counts: a count is a query."""


def records(count: int, turn: int, now: int) -> list[ProducerRecord]:
    """Of the notifications just before a moment; another turn has other ids."""
    facts = Records(seed=turn).facts(now - (turn + 1) * count * STEP_MS)
    return [ProducerRecord(*each) for each in islice(facts, count)]


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    count, kafka, directory = scale.size(200_000, 600_000), world.broker(), world.directory / "sink"
    directory.mkdir()
    producer, admin, turn = Producer(kafka, client_id="bench"), Admin(kafka), counter()
    topics = [requests_topic("normal"), STATUS]
    with running_engine(directory / "clickhouse") as (store, engine):
        schema.migrate(store)
        client = clickhouse.connect(store)
        env = environment(
            {
                "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
                "HELIOGRAPH_CLICKHOUSE__URL": store.url,
                "HELIOGRAPH_PARTITIONS": "local",
            }
        )

        def stored() -> int:
            sql = "SELECT (SELECT count() FROM requests_raw) + (SELECT count() FROM delivery_events_raw)"
            return int(client.query(sql).result_rows[0][0])

        def committed() -> int:
            return sum(admin.group_offsets(GROUP, topics)[0].values())

        command = [sys.executable, "-m", "console.cli", "run", "sink"]
        with worker(command, directory / "sink.log", env, directory) as process:
            watched = Observed(process, lambda _: None, stored, committed, POLL_S, backlog=True)

            def measure(size: int) -> Measured:
                made = records(size, next(turn), int(time.time() * 1000))
                before = engine.cpu_times()
                found = observe(replace(watched, publish=lambda _: producer.publish(made)), size)
                after = engine.cpu_times()
                used = after.user + after.system - before.user - before.system
                return Measured({**found.figures, "engine_cpu_us": used / size * 1e6}, found.counts)

            measure(1_000)
            sample = records(min(count, 10_000), 0, data.STILL)
            yield Trial(
                data.numbered(count, sample),
                [Contender("run sink", partial(measure, count))],
                "cpu_us",
                notes=[f"{count} rows a round, in a backlog"],
                profiles={"sink": partial(profiles.of_process, process.pid, partial(measure, count))},
            )
        client.close()
    producer.close()


CASE = Case("sink", "records from Kafka are rows with states", "broker", open_trial)
