"""What pending timers cost: starting over them, and firing others while they wait.

`run timers` on a broker of its own. A start is measured to the moment when everything that was due has come out of its topic; the same process
then fires a steady share of timers that become due.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as counter

import psutil

from bench import data, timers
from bench.broker import broker
from bench.case import Case, Contender, Counts, Measured, Scale, Trial
from bench.e2e import WrongRunError
from bench.figures import quantile
from bench.world import World
from runtime.kafka.producer import Producer

MARKERS = 100
SEED = 7


@contextmanager
def open_trial(scale: Scale, world: World) -> Iterator[Trial]:
    pending, per_second, seconds = scale.size(100_000, 1_000_000), 500, scale.size(6, 30)
    directory, rng, turn = world.directory / "timers", random.Random(SEED), counter()
    directory.mkdir()
    with broker(directory) as settings:
        producer, fired = Producer(settings, client_id="bench"), timers.Fired(settings)
        timers.publish(producer, pending, rng)
        running: list[subprocess.Popen[bytes]] = []

        def take(mark: str, count: int, patience_s: float) -> list[int]:
            try:
                return fired.take(mark, count, patience_s)[0]
            except SystemExit as exc:
                raise WrongRunError(str(exc)) from exc

        def start() -> Measured:
            """After SIGTERM, so that the group does not wait for the dead one."""
            stop()
            mark, now = f"start{next(turn)}-", time.time_ns() // 1_000_000
            producer.publish([timers.timer(f"{mark}{n}", now, rng) for n in range(MARKERS)])
            began = time.monotonic()
            running.append(timers.start_role(settings, directory))
            process = psutil.Process(running[0].pid)
            late = take(mark, MARKERS, 300)
            took, used = time.monotonic() - began, process.cpu_times()
            figures = {
                "ready_s": took,
                "cpu_us": (used.user + used.system) / pending * 1e6,
                "rss_mib": process.memory_info().rss / 2**20,
            }
            return Measured(figures, Counts(MARKERS, len(late), len(late)))

        def stop() -> None:
            for process in running:
                process.terminate()
                process.wait(30)
            running.clear()

        def fire() -> Measured:
            process = psutil.Process(running[0].pid)
            count, before = per_second * seconds, process.cpu_times()
            mark = f"late{next(turn)}-"
            feeder = threading.Thread(target=timers.trickle, args=(producer, per_second, seconds, rng, mark))
            feeder.start()
            late = take(mark, count, seconds + 60)
            feeder.join()
            after = process.cpu_times()
            if late[0] < 0:
                raise WrongRunError(f"a timer fired {-late[0]} ms early")
            used = after.user + after.system - before.user - before.system
            figures = {
                "cpu_us": used / count * 1e6,
                "p50_ms": quantile(late, 0.5),
                "p99_ms": quantile(late, 0.99),
                "rss_mib": process.memory_info().rss / 2**20,
            }
            return Measured(figures, Counts(count, len(late), len(late)))

        try:
            made = [timers.timer(f"user-{n:08d}", data.STILL, random.Random(n)) for n in range(min(pending, 10_000))]
            yield Trial(
                data.digest(made),
                [Contender(f"start over {pending:,} pending", start), Contender(f"{per_second} due a second", fire)],
                "cpu_us",
                notes=[
                    "CPU µs are of a pending timer at a start, of a fired one afterwards; p50 and p99 are how late it is"
                ],
            )
        finally:
            stop()
            fired.close()
            producer.close()


CASE = Case("timers", "pending timers are loaded, due ones fire", "broker", open_trial)
