"""Hours in minutes: 70 % of the maximum of the same run, in stretches, each of which ends with every message settled.

Memory's slope over the last two thirds of the stretches, the p99 of the last third over that of the first, and what is left unsettled (which is none, or there is no figure).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

from bench import data
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.e2e import OURS, Bench, drain, waits, warm
from bench.figures import quantile, slope
from bench.processes import pss_mib, tree
from bench.world import World

CHANNEL = "email"
SHARE = 0.7


def memory_mib(bench: Bench) -> float:
    """Of the product."""
    return sum(pss_mib(tree(pid)) for name, pid in bench.processes.items() if name.startswith(OURS))


def soak(bench: Bench, rate: float, stretches: int, seconds: float) -> Measured:
    began, count = time.monotonic(), 0
    points, p99s = [], []
    for _ in range(stretches):
        found = waits(bench, CHANNEL, rate, seconds)  # raises where one is missing, doubled or not settled
        count += len(found)
        p99s.append(quantile(found, 0.99))
        points.append((time.monotonic() - began, memory_mib(bench)))
    third = max(1, stretches // 3)
    points = points[len(points) // 3 :]  # what a start still fills is no slope
    first = points[0][1]
    figures = {
        "per_second": rate,
        "pss_mib": points[-1][1],
        "pss_percent_per_10_min": slope(points) * 600 / first * 100,
        "p99_ms": median(p99s[-third:]),
        "p99_drift": median(p99s[-third:]) / median(p99s[:third]),
        "unsettled": 0.0,
    }
    return Measured(figures, Counts(count, count, count))


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    bench = world.stack()
    warm(bench, CHANNEL)
    count = scale.size(5_000, 30_000)
    maximum = drain(bench, CHANNEL, count).per_second
    stretches, seconds = (60, 30.0) if scale.full else (6, 6.0)
    rate = min(SHARE * maximum, bench.users / seconds)
    yield Trial(
        data.digest_of(bench.users, users=bench.users),
        [Contender(f"{stretches} stretches of {seconds:.0f} s", partial(soak, bench, rate, stretches, seconds))],
        "p99_drift",
        notes=[f"{rate:,.0f} a second, of a maximum of {maximum:,.0f}"],
        repeat=1,
    )


CASE = Case("soak", "at 70 % of the maximum, nothing grows and nothing is left", "stack", open_trial)
