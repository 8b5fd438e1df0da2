"""Views: the last value per key of a compacted topic, held in this process.

A view reads its topic without a group, from the beginning to the end offsets it finds at start, and only then reports
ready; afterwards it tails. Values stay Avro bytes and are decoded on use (391 MiB per million profiles instead of 1.2 GiB).
What never enters here: meaning of a record; a group; a Faust table.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

from runtime import dead_letters
from runtime.clock import Clock, system_clock
from runtime.errors import PublishError, TopicsError, UnavailableError
from runtime.health import Health
from runtime.kafka import BEGINNING, Consumer
from runtime.logs import get_logger
from runtime.metrics import VIEW_KEYS
from runtime.records import InRecord, OutRecord
from runtime.settings import KafkaSettings
from schemas.codec import DecodeError, codec
from schemas.topics import catalogue

log = get_logger("views")
T = TypeVar("T")

Report = Callable[[Sequence[OutRecord]], None]
"""Publishes dead letters and returns when they are acknowledged."""


class Store(Protocol):
    """Where a view keeps its bytes."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def __len__(self) -> int: ...


class MemoryStore:
    """Bytes in a dict."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self.get = self._values.get
        self.put = self._values.__setitem__

    def delete(self, key: bytes) -> None:
        self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)


class View(Generic[T]):
    """The last record per key of one compacted topic, readable from any thread; written by its own thread.

    `keep` says which records are worth holding; a key whose last record is not is absent.
    """

    def __init__(
        self, settings: KafkaSettings, topic: str, *, store: Store | None = None, report: Report | None = None,
        keep: Callable[[T], bool] | None = None, clock: Clock = system_clock,
    ) -> None:  # fmt: skip
        self.topic = topic
        self._settings, self._report, self._keep, self._clock = settings, report, keep, clock
        self._codec = codec(catalogue()[topic].record)
        self._store: Store = store if store is not None else MemoryStore()
        self._reason: str | None = "not started"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"view-{topic}", daemon=True)

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._reason = "not caught up"
        self._thread.start()

    def not_ready(self) -> str | None:
        """Why the view may not be used yet, None when it has everything that was there at its start."""
        return self._reason

    def get(self, key: str) -> T | None:
        """The record under a key, None where there is none."""
        raw = self._store.get(key.encode())
        if raw is None:
            return None
        try:
            return cast(T, self._codec.decode(raw))
        except DecodeError:
            # Reported when it was read: bytes that do not decode are no value.
            return None

    def raw(self, key: str) -> bytes | None:
        """The Avro bytes under a key, for callers that cache what they make of them."""
        return self._store.get(key.encode())

    def __contains__(self, key: str) -> bool:
        return self._store.get(key.encode()) is not None

    def __len__(self) -> int:
        return len(self._store)

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def apply(self, records: Iterable[InRecord]) -> list[OutRecord]:
        """Take records in; returns dead letters for those that are no record of this topic."""
        letters = []
        for record in records:
            if record.key is None:
                error = DecodeError("a record of a compacted topic needs a key")
                letters.append(self._letter(record, error))
            elif record.value is None:
                self._store.delete(record.key)
            else:
                try:
                    value = cast(T, self._codec.decode(record.value))
                except DecodeError as exc:
                    letters.append(self._letter(record, exc))
                    continue
                if self._keep is None or self._keep(value):
                    self._store.put(record.key, record.value)
                else:
                    self._store.delete(record.key)
        return letters

    def _letter(self, record: InRecord, error: DecodeError) -> OutRecord:
        return dead_letters.dead_letter(
            record, stage="view", reason=dead_letters.UNDECODABLE, error=error, now=self._clock()
        )

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._read()
            except (UnavailableError, TopicsError, PublishError) as exc:
                self._reason = str(exc)
                log.warning("view cannot read", topic=self.topic, error=str(exc))
                self._closed.wait(1)

    def _read(self) -> None:
        """Read from the beginning; a view that lost its place starts over, which is idempotent."""
        consumer = Consumer(
            self._settings, client_id=f"view-{self.topic}", group=None, queued_kbytes=65_536, notice_end=True
        )
        try:
            partitions = consumer.partitions_of(self.topic)
            consumer.assign(dict.fromkeys(partitions, BEGINNING))
            looked = 0.0
            while not self._closed.is_set():
                letters = self.apply(consumer.consume(5_000, 0.5))
                if letters and self._report:
                    self._report(letters)
                if self._reason is not None and consumer.reached_end.issuperset(partitions):
                    self._reason = None
                    log.info("view is caught up", topic=self.topic, keys=len(self._store))
                if time.monotonic() - looked > 1:
                    looked = time.monotonic()
                    VIEW_KEYS.labels(self.topic).set(len(self._store))
        finally:
            consumer.close()


def start_views(views: Iterable[View[Any]], health: Health) -> None:
    """Start views and make readiness wait for them."""
    for view in views:
        health.require(f"view {view.topic}", view.not_ready)
        view.start()


async def caught_up(views: Iterable[View[Any]], stopping: asyncio.Event) -> bool:
    """Wait until every view is ready; False when the process is told to stop first."""
    for view in views:
        while view.not_ready() and not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 0.02)
    return not stopping.is_set()
