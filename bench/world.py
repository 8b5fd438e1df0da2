"""What cases run in: a directory, a broker of their own, a whole local stack; each is started when a case first asks for it.

May import bench, local and runtime. Never: a measurement.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from bench.broker import broker
from bench.e2e import Bench, running
from runtime.settings import KafkaSettings


class World:
    """Ends what it started, at the latest with its block."""

    def __init__(self, users: int) -> None:
        """`users` is how many recipients a stack knows."""
        self._users = users
        self._directory = tempfile.TemporaryDirectory(prefix="heliograph-bench-")
        self.directory = Path(self._directory.name)
        self._started = ExitStack()
        self._broker: KafkaSettings | None = None
        self._stack: Bench | None = None

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._directory.cleanup()

    def stop(self) -> None:
        """End the broker and the stack: the next that asks gets new ones."""
        self._broker = self._stack = None
        self._started.close()
        self._started = ExitStack()

    def broker(self) -> KafkaSettings:
        """One Kafka with our topics in the local profile: four partitions each."""
        if self._broker is None:
            directory = Path(tempfile.mkdtemp(prefix="broker-", dir=self.directory))
            self._broker = self._started.enter_context(broker(directory))
        return self._broker

    def stack(self) -> Bench:
        """Every role, with a provider under every channel that only takes."""
        if self._stack is None:
            self._stack = self._started.enter_context(running(self._users))
        return self._stack
