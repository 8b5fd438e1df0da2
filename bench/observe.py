"""A worker process from outside: publish, wait until it is all out and settled, and see what it cost.

    with worker(command, log) as process:
        measured = observe(Observed(process, publish, sent, settled), count)

May import bench. Never: what is published.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench.case import Counts, Measured
from bench.e2e import WrongRunError
from bench.processes import cpu_s, tree
from local.processes import last_line
from runtime.errors import UnavailableError
from runtime.kafka.admin import Admin
from runtime.kafka.client import Partition
from runtime.settings import KafkaSettings

PATIENCE_S = 240.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of a contender, and the file its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises WrongRunError with its last words where it has ended."""
        if self.process.poll() is not None:
            raise WrongRunError(f"{self.log.stem} ended with {self.process.returncode}: {last_line(self.log)}")


@dataclass(frozen=True, slots=True)
class Observed:
    """A process, and how its work is counted from outside; the counters only grow."""

    worker: Worker
    publish: Callable[[int], None]
    """Put in that many."""
    sent: Callable[[], int]
    settled: Callable[[], int]
    poll_s: float = 0.02
    """Between two counts."""
    backlog: bool = False
    """The process stands still meanwhile, and the clock too: for a stage that is quicker than what publishes to it."""


def observe(it: Observed, count: int) -> Measured:
    """Messages a second from the first publish (of a backlog: from the last) to the last one sent, CPU µs a message until all are
    settled.

    Raises WrongRunError where they do not come in time.
    """
    sent, settled, cpu = it.sent(), it.settled(), cpu_s(tree(it.worker.pid))
    started = time.monotonic()
    with standing_still(it.worker.process) if it.backlog else nullcontext():
        it.publish(count)
    if it.backlog:
        started = time.monotonic()
    until(lambda: it.sent() - sent >= count, f"{count} are sent", worker=it.worker, poll_s=it.poll_s)
    took = time.monotonic() - started
    until(lambda: it.settled() - settled >= count, f"{count} are settled", worker=it.worker, poll_s=it.poll_s)
    used = cpu_s(tree(it.worker.pid)) - cpu
    figures = {"per_second": count / took, "cpu_us": used / count * 1e6}
    return Measured(figures, Counts(count, it.sent() - sent, it.settled() - settled))


@contextmanager
def standing_still(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stopped for the block, for less than a consumer group waits for a member."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def until(
    condition: Callable[[], bool],
    what: str,
    patience_s: float = PATIENCE_S,
    worker: Worker | None = None,
    poll_s: float = 0.02,
) -> None:
    """Raises WrongRunError, at once where the worker has ended that should bring it about."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if worker is not None:
            worker.check()
        if time.monotonic() > deadline:
            raise WrongRunError(f"after {patience_s:.0f} s it is not so that {what}")
        time.sleep(poll_s)


@contextmanager
def worker(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str], directory: Path | None = None
) -> Iterator[Worker]:
    """A process that ends with the block. Its output goes to a file."""
    with (
        log.open("ab") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=directory) as process,
    ):
        try:
            yield Worker(process, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


class Ends:
    """How many records topics have ever had, asked of the broker in one call."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str]) -> None:
        self._admin = Admin(settings)
        counts = self._admin.partition_counts()
        self._starts: dict[Partition, int] = {(topic, n): 0 for topic in topics for n in range(counts[topic])}

    def __call__(self) -> int:
        """Raises UnavailableError."""
        for _ in range(100):
            try:
                return sum(self._admin.lag_behind(self._starts).values())
            except UnavailableError:  # topics that were made a moment ago have no leader yet
                time.sleep(0.1)
        return sum(self._admin.lag_behind(self._starts).values())
