"""What watching costs: streams of server-sent events to one API process, and facts at a steady rate for them; see bench/live.py.

A stack of its own, for it ends with SIGTERM to the API.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.data import digest_of
from bench.e2e import Bench, running
from bench.live import RATE, SECONDS, WATCHERS, measure
from bench.world import World

log = logging.getLogger("bench")


def measured(bench: Bench, directory: Path, options: Namespace) -> Measured:
    row = measure(bench, directory, options, log.info)
    figures = {name: float(value) for name, value in row.items() if value is not None}
    return Measured(figures, Counts(row["facts"], row["told"], row["told"]))


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    watchers = scale.size(WATCHERS // 5, WATCHERS)
    options = Namespace(watchers=watchers, rate=RATE, seconds=scale.size(8, SECONDS))
    directory = world.directory / "live"
    directory.mkdir()
    with running(1) as bench:
        yield Trial(
            digest_of(watchers, users=1),
            [Contender(f"{watchers:,} streams", lambda: measured(bench, directory, options))],
            "p99_ms",
            notes=[f"{RATE:,} facts a second for {options.seconds} s, each for one of them"],
            repeat=1,
        )


CASE = Case("live", "a fact reaches whoever watches its notification", "nothing", open_trial)
