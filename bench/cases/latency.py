"""How long a message takes from its request to its provider, at rates fixed before: nothing waits for an answer to send the next.

At 10 a second, at half of the maximum of the same run, on the critical lane at a tenth of it, and on the critical lane while a blast of bulk mails
drains: the lane's own idle value is what the blast is divided by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from bench import data
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.e2e import Bench, blast, drain, waits, warm
from bench.figures import quantile
from bench.world import World

CHANNEL = "email"


def measured(found: Sequence[float]) -> Measured:
    figures = {"p50_ms": quantile(found, 0.5), "p99_ms": quantile(found, 0.99), "max_ms": max(found)}
    return Measured(figures, Counts(len(found), len(found), len(found)))  # waits raises where one is missing or doubled


def at_rate(bench: Bench, rate: float, seconds: float, lane: str) -> Measured:
    return measured(waits(bench, CHANNEL, rate, seconds, lane))


def during_blast(bench: Bench, bulk: int, rate: float, seconds: float) -> Measured:
    return measured(blast(bench, CHANNEL, bulk, rate, seconds))


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    bench, seconds = world.stack(), scale.size(8, 30)
    warm(bench, CHANNEL)
    maximum = drain(bench, CHANNEL, scale.size(5_000, 30_000)).per_second
    bulk = scale.size(5_000, 100_000)
    tenth = maximum / 10
    idle = "critical at a tenth"
    yield Trial(
        data.digest_of(bench.users, users=bench.users),
        [
            Contender(idle, partial(at_rate, bench, tenth, seconds, "critical")),
            Contender(f"critical at 10/s, {bulk:,} bulk mails queued", partial(during_blast, bench, bulk, 10, seconds)),
            Contender("normal at 10/s", partial(at_rate, bench, 10, seconds, "normal")),
            Contender("normal at half", partial(at_rate, bench, maximum / 2, seconds, "normal")),
        ],
        "p99_ms",
        idle,
        notes=[f"the maximum of this run is {maximum:,.0f} a second; each rate for {seconds} s"],
    )


CASE = Case("latency", "from the moment a request is due to its arrival at the provider", "stack", open_trial)
