"""What a message costs when there is more of everything: users, templates, partitions, backlog. Nothing should grow worse than log n.

Users and templates by the router's function over encoded records in memory; partitions and backlog by a whole router on a broker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench import data
from bench.broker import broker
from bench.case import Case, Contender, Scale, Trial
from bench.cases.enrich import USERS, WARM, Routed, function, ours
from bench.observe import Observed, observe, worker
from bench.world import World

PARTITIONS = 64


def router(started: ExitStack, world: World, name: str, partitions: int | None, count: int) -> Observed:
    """A router under the default engine on a broker of its own, which has its partitions."""
    directory = world.directory / name
    directory.mkdir()
    settings = started.enter_context(broker(directory, partitions))
    records = data.requests(count, USERS, int(time.time() * 1000))
    process = started.enter_context(worker(*ours("faust", settings, directory, "normal")))
    routed = Routed(settings, records).observed(process, None)
    observe(routed, WARM)
    return routed


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    count, now = scale.size(10_000, 50_000), int(time.time() * 1000)
    users, templates, backlog = scale.size(100_000, 1_000_000), scale.size(2_000, 10_000), scale.size(40_000, 500_000)
    few = data.requests(count, USERS, now)
    many_users = data.requests(count, users, now)
    ten = data.requests(count, USERS, now, templates=data.template_names(10))
    many_templates = data.requests(count, USERS, now, templates=data.template_names(templates))
    small = f"{USERS:,} users"
    with ExitStack() as started:
        four, wide = "4 partitions", f"{PARTITIONS} partitions"
        narrow = router(started, world, "four", None, backlog)
        widened = router(started, world, "wide", PARTITIONS, count)
        yield Trial(
            data.digest_of(count, users=USERS),
            [
                Contender(small, partial(function, few, data.views(USERS), now)),
                Contender(f"{users:,} users", partial(function, many_users, data.views(users), now), small),
                Contender("10 templates", partial(function, ten, data.views(USERS, 10), now)),
                Contender(
                    f"{templates:,} templates",
                    partial(function, many_templates, data.views(USERS, templates), now),
                    "10 templates",
                ),
                Contender(f"{four}, {count:,} at once", partial(observe, narrow, count)),
                Contender(f"{wide}, {count:,} at once", partial(observe, widened, count), f"{four}, {count:,} at once"),
                Contender(
                    f"{four}, {backlog:,} at once", partial(observe, narrow, backlog), f"{four}, {count:,} at once"
                ),
            ],
            "cpu_us",
            notes=["each is divided by the smaller one of its kind"],
        )


CASE = Case("growth", "what a message costs with more users, templates, partitions, backlog", "broker", open_trial)
