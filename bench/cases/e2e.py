"""The whole product: a backlog of requests to the provider, every role, Kafka, PostgreSQL and ClickHouse's engine on the same cores.

The figure to move: CPU µs a message of all processes of the product. Acks from all replicas, fsync, claims, the ledger and the look before
each send are on. There is no rival to run beside: the cores are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench import data, profiles
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.e2e import OURS, Bench, drain, warm
from bench.world import World


def measure(bench: Bench, channel: str, count: int) -> Measured:
    drained = drain(bench, channel, count)  # raises where not every message arrived once and is settled
    by_role = {"sender": 0.0, "router": 0.0, "kafka": 0.0, "clickhouse": 0.0, "relay": 0.0, "sink": 0.0}
    for name, used in drained.cpu_us.items():
        role = next((role for role in by_role if name.startswith(role)), None)
        if role is not None and name.startswith(OURS):
            by_role[role] += used
    figures = {"per_second": drained.per_second, "cpu_us": drained.product_cpu_us, "pss_mib": drained.memory_mib}
    return Measured({**figures, **by_role}, Counts(count, count, count))


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    count = scale.size(8_000, 30_000)
    bench = world.stack()
    for channel in data.CHANNELS:
        warm(bench, channel)
    stages = {
        f"{name} under mails": partial(
            profiles.of_process, bench.processes[name], partial(drain, bench, "email", count)
        )
        for name in ("sender-email", "router-normal", "relay", "sink")
    }
    yield Trial(
        data.digest_of(count, users=count),
        [Contender(channel, partial(measure, bench, channel, count)) for channel in data.CHANNELS],
        "cpu_us",
        "email",
        notes=[f"{count} messages a round; columns after pss_mib are CPU µs a message by role"],
        profiles=stages,
    )


CASE = Case("e2e", "from a published request to the provider, everything included", "stack", open_trial)
