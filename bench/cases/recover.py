"""How long a process is not ready: it reads every recipient's profile from a compacted topic before its first request.

A view as a router has it, every profile decoded once so that a bad one is found, beside the least that could be done.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count as counter
from pathlib import Path

from bench import data, views
from bench.broker import broker
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.e2e import WrongRunError
from bench.environments import UnavailableRivalError, environment, python
from bench.world import World
from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.topics import RECIPIENTS


def measure(command: list[str], users: int) -> Measured:
    """A fresh process until it has them all."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise WrongRunError(f"{command[2]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    figures = {
        "ready_s": answer["ready_s"],
        "per_second": users / answer["ready_s"] if answer["ready_s"] else 0.0,
        "cpu_us": answer["cpu_us"],
        "rss_mib": answer["rss_mib"],
    }
    there = round(answer["found"] * users)  # of 20,000 that were asked for
    return Measured(figures, Counts(users, there, there))


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    users, directory, left_out = scale.size(100_000, 1_000_000), world.directory / "recover", {}
    directory.mkdir()
    with broker(directory) as settings:  # of its own: nothing else is in the topic
        views.publish(settings, users)
        module, turn = [sys.executable, "-m", "bench.views", "--measure", settings.bootstrap_servers], counter()

        def view(backend: str, place: Path | None) -> Measured:
            return measure([*module, backend, str(place or directory / f"fresh-{next(turn)}"), str(users)], users)

        kept = directory / "kept"
        view("rocksdb", kept)
        contenders = [
            Contender("view in memory", partial(view, "memory", None)),
            Contender("view on RocksDB, first start", partial(view, "rocksdb", None)),
            Contender("view on RocksDB, restart", partial(view, "rocksdb", kept)),
        ]
        try:
            if scale.rivals:
                bare = [str(python("streams")), "-m", "bench.rivals.bare_reader", settings.bootstrap_servers]
                contenders.append(Contender("bare consumer", partial(measure, [*bare, RECIPIENTS, str(users)], users)))
        except UnavailableRivalError as exc:
            left_out["bare consumer"] = str(exc)
        encode = codec("RecipientProfile").encode
        made = [ProducerRecord(RECIPIENTS, b"", encode(dict(views.profile(n)))) for n in range(min(users, 10_000))]
        yield Trial(data.digest(made), contenders, "cpu_us", contenders[0].name, left_out, [f"{users} profiles"])


CASE = Case("recover", "a process has every recipient's profile", "broker", open_trial)
