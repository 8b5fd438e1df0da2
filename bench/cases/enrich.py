"""What routing costs: a request with a template becomes a message with text and HTML, and a status.

Ours under both engines beside the same function in the least loop that there is, in a plain Faust agent, and as a Celery task; each a
process of its own, over Kafka (Celery: Redis) with every acknowledgement waited for. `enrich_batch` is the function itself, without a broker.
"""

from __future__ import annotations

import base64
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench import data, profiles
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.environments import UnavailableRivalError, environment, python
from bench.observe import Ends, Observed, Worker, observe, worker
from bench.redis import redis
from bench.rivals.topic import make_topic
from bench.world import World
from processors.router.enrich import RouterViews, enrich_batch
from runtime.kafka.producer import Producer
from runtime.records import ConsumerRecord
from runtime.settings import KafkaSettings
from schemas.events import LANES
from schemas.topics import STATUS, dispatch_topic

USERS = 1_000
WARM = 200
_LANES = {"loop": "normal", "faust": "critical"}
"""Each engine has a lane, so that one does not take what is the other's."""


def function(records: Sequence[ConsumerRecord], reference: RouterViews, now: int) -> Measured:
    """The router's function in this process, in batches of 500."""
    sent = settled = 0
    began, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(records), 500):
        out = enrich_batch(records[first : first + 500], reference, now)
        settled += sum(record.topic == STATUS for record in out)
        sent += sum(record.topic != STATUS for record in out)
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    figures = {"per_second": len(records) / took, "cpu_us": cpu / len(records) * 1e6}
    return Measured(figures, Counts(len(records), sent, settled))


class Routed:
    """The broker's side: publishes to a contender's topic, counts what comes of it."""

    def __init__(self, settings: KafkaSettings, records: Sequence[ConsumerRecord]) -> None:
        self._records = records
        self._producer = Producer(settings, client_id="bench")
        self._sent = Ends(settings, [dispatch_topic("email", lane) for lane in LANES])
        self._settled = Ends(settings, [STATUS])
        for profiles_of_some in data.profiles(data.TENANT, USERS):
            self._producer.publish(profiles_of_some)
        self._producer.publish([data.template_record(data.TENANT)])

    def observed(self, process: Worker, topic: str | None) -> Observed:
        """A worker that reads a topic; the requests' own where it is None."""
        return Observed(process, partial(self._publish, topic), self._sent, self._settled)

    def _publish(self, topic: str | None, count: int) -> None:
        self._producer.publish(data.publishable(self._records[:count], topic))


def ours(
    engine: str, settings: KafkaSettings, directory: Path, lane: str
) -> tuple[list[str | Path], Path, dict[str, str]]:
    """The command of a lane's router, its log and its environment."""
    command: list[str | Path] = [sys.executable, "-m", "console.cli", "run", "router", "--lane", lane]
    settings_of_it = {
        "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "HELIOGRAPH_ROUTER__ENGINE": engine,
        "HELIOGRAPH_PARTITIONS": "local",
    }
    return command, directory / f"router-{engine}.log", environment(settings_of_it)


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    count, few, fewer = scale.size(20_000, 60_000), scale.size(5_000, 20_000), scale.size(1_500, 6_000)
    settings, directory, now = world.broker(), world.directory, int(time.time() * 1000)
    by_lane = {lane: data.requests(count, USERS, now, lane=lane) for lane in _LANES.values()}
    records, reference = by_lane["normal"], data.views(USERS)
    contenders, left_out = [], {}
    with ExitStack() as started:

        def add(name: str, worked: Observed, size: int) -> None:
            observe(worked, WARM)
            contenders.append(Contender(name, partial(observe, worked, size)))

        routers = {}
        for engine, lane in _LANES.items():
            process = started.enter_context(worker(*ours(engine, settings, directory, lane)))
            routers[engine] = Routed(settings, by_lane[lane]).observed(process, None)
        add("router, Faust (the default)", routers["faust"], count)
        add("router, plain loop", routers["loop"], count)
        contenders.append(Contender("enrich_batch, no broker", partial(function, records, reference, now)))
        rivals: dict[str, tuple[Callable[[], Observed], int]] = {
            "bare loop, same function": (lambda: _stream(started, "bare_loop", settings, directory, records), count),
            "naive Faust, same function": (lambda: _stream(started, "naive_faust", settings, directory, records), few),
            "Celery + Redis, same function": (lambda: _celery(started, directory, records), fewer),
        }
        for name, (start, size) in rivals.items() if scale.rivals else ():
            try:
                add(name, start(), size)
            except UnavailableRivalError as exc:
                left_out[name] = str(exc)
        stages = {
            f"router, {engine}": partial(profiles.of_process, routed.worker.pid, partial(observe, routed, count))
            for engine, routed in routers.items()
        }
        yield Trial(
            data.digest_of(count, users=USERS),
            contenders,
            "cpu_us",
            contenders[0].name,
            left_out,
            [f"{count} requests a round; naive Faust {few}, Celery {fewer} of them"],
            stages,
        )


def _stream(
    started: ExitStack, module: str, settings: KafkaSettings, directory: Path, records: Sequence[ConsumerRecord]
) -> Observed:
    topic = f"bench.{module}"
    command: list[str | Path] = [
        python("streams"),
        "-m",
        f"bench.rivals.{module}",
        settings.bootstrap_servers,
        topic,
        str(USERS),
    ]
    if module == "naive_faust":
        command.append(directory / "faust")
    make_topic(settings.bootstrap_servers, topic)
    process = started.enter_context(worker(command, directory / f"{module}.log", environment()))
    return Routed(settings, records).observed(process, topic)


def _celery(started: ExitStack, directory: Path, records: Sequence[ConsumerRecord]) -> Observed:
    interpreter, server = python("celery"), started.enter_context(redis(directory))
    values = directory / "requests.txt"
    values.write_text("".join(base64.b64encode(record.value or b"").decode() + "\n" for record in records))
    env = environment({"BENCH_REDIS": server.url, "BENCH_USERS": str(USERS)})
    command: list[str | Path] = [
        interpreter.parent / "celery",
        *[
            "--app",
            "bench.rivals.celery_app",
            "worker",
            "--pool",
            "solo",
            "--queues",
            "requests",
            "--without-gossip",
            "--without-mingle",
        ],
    ]
    process = started.enter_context(worker(command, directory / "celery.log", env, directory))

    def publish(count: int) -> None:
        enqueue = [str(interpreter), "-m", "bench.rivals.celery_app", str(values), str(count)]
        subprocess.run(enqueue, env=env, cwd=directory, check=True, capture_output=True)

    return Observed(process, publish, partial(server.length, "messages"), partial(server.length, "status"))


CASE = Case("enrich", "a request with a template becomes a mail and a status", "broker", open_trial)
