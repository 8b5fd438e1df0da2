"""Views: the last value per key of a compacted topic, held in this process.

A view reads its topic without a group, from its stored position (else the beginning) to the end it finds at start, and only
then reports ready; afterwards it tails. A view that cannot read reports the reason and retries, whatever the cause. Values stay Avro bytes and are decoded on use (391 MiB per million profiles instead of 1.2 GiB).
May import runtime and schemas. Never: meaning of a record; a group; a Faust table.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import INTERNAL_ERROR, UNDECODABLE, dead_letter_record, publish_dead_letters
from runtime.errors import PublishError, TopicsError, UnavailableError
from runtime.health import Health
from runtime.kafka.client import Partition
from runtime.kafka.consumer import BEGINNING, STAY_MS, Consumer
from runtime.logs import get_logger
from runtime.metrics import VIEW_AGE_SECONDS, VIEW_KEYS
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import KafkaSettings, ViewSettings
from runtime.stores import MemoryStore, RocksStore, Store
from schemas.codec import DecodeError, codec, read_schema
from schemas.topics import catalogue

log = get_logger("views")
T = TypeVar("T")

MAX_POSITION_AGE_MS = 12 * 3_600_000
SAVE_INTERVAL_S = 60.0
MAX_SKEW_MS = 60_000

Publish = Callable[[Sequence[ProducerRecord]], None]
"""Publishes dead letters and returns when they are acknowledged."""


def is_older(value: Mapping[str, int], held: Mapping[str, int]) -> bool:
    """Whether a record is older than `held`, the value the view has.

    Versions count up, but start from 1 again when an entity is deleted and created again, and an older version of a template
    may be published; times come from several clocks. So older means older by both, or by more time than clocks differ.
    """
    behind = held["updated_at"] - value["updated_at"]
    return behind > 0 and (value["version"] < held["version"] or behind > MAX_SKEW_MS)


class View(Generic[T]):
    """The last record per key of one compacted topic, readable from any thread; written by its own thread.

    `keep` says which records are worth holding; a key whose last record is not is absent.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        store: Store | None = None,
        publish: Publish | None = None,
        keep: Callable[[T], bool] | None = None,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self.topic = topic
        self._settings = settings
        self._publish = publish
        self._keep = keep
        self._clock = clock
        self._monotonic = monotonic
        self._codec = codec(catalogue()[topic].record)
        fields = {field["name"] for field in read_schema(self._codec.name)["fields"]}
        self._versioned = {"version", "updated_at"} <= fields
        self._store: Store = store if store is not None else MemoryStore()
        self._reason: str | None = "not started"
        self._kept = 0.0
        self._current_at = self._monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"view-{topic}", daemon=True)

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._reason = "not caught up"
        self._current_at = self._monotonic()
        VIEW_AGE_SECONDS.labels(self.topic).set_function(self.age_s)
        self._thread.start()

    def not_ready(self) -> str | None:
        """Why the view may not be used, None when it has everything that was there at its start, and reads on."""
        if self._reason is None and not self._thread.is_alive():
            return "its reader has ended"
        return self._reason

    def age_s(self) -> float:
        """Seconds since the view is known to have had all that its topic had; a quiet topic is asked every 15 s."""
        return self._monotonic() - self._current_at

    def get(self, key: str) -> T | None:
        """The record under a key, None where there is none."""
        raw = self._store.get(key.encode())
        if raw is None:
            return None
        try:
            return cast(T, self._codec.decode(raw))
        except DecodeError:
            # Reported when it was read: an undecodable record has no value.
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
        if not self._thread.is_alive():
            self._store.close()

    def apply(self, records: Iterable[ConsumerRecord]) -> list[ProducerRecord]:
        """Apply records; returns dead letters for those that are not valid records of this topic."""
        dead_letters = []
        for record in records:
            if record.key is None:
                error = DecodeError("a record of a compacted topic needs a key")
                dead_letters.append(self._dead_letter(record, error))
            elif record.value is None:
                self._store.delete(record.key)
            else:
                try:
                    value = cast(T, self._codec.decode(record.value))
                    kept = self._keep is None or self._keep(value)
                except DecodeError as exc:
                    dead_letters.append(self._dead_letter(record, exc))
                    continue
                except Exception as exc:  # one record must not end a view
                    log.exception("dead-lettered", topic=self.topic)
                    dead_letters.append(self._dead_letter(record, exc, INTERNAL_ERROR))
                    continue
                if not kept:
                    self._store.delete(record.key)
                elif not self._superseded(record.key, value):
                    self._store.put(record.key, record.value)
        return dead_letters

    def _superseded(self, key: bytes, value: T) -> bool:
        """Whether what is held is newer: a relay that lost its position may publish an older value late."""
        held = self._store.get(key) if self._versioned else None
        if held is None:
            return False
        try:
            return is_older(cast(Mapping[str, int], value), self._codec.decode(held))
        except DecodeError:
            return False

    def _dead_letter(self, record: ConsumerRecord, error: Exception, reason: str = UNDECODABLE) -> ProducerRecord:
        return dead_letter_record(record, stage="view", reason=reason, error=error, now=self._clock())

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._read()
            except (UnavailableError, TopicsError, PublishError) as exc:
                self._reason = str(exc)
                log.warning("view cannot read", topic=self.topic, error=str(exc))
            except Exception as exc:  # for example a full disk: not ready meanwhile, and logged
                self._reason = f"cannot read: {type(exc).__name__}: {exc}"
                log.exception("view cannot read", topic=self.topic)
            self._closed.wait(1)

    def _read(self) -> None:
        """Read on from the stored position; a view that lost its position starts over, which is idempotent."""
        consumer = Consumer(
            self._settings,
            client_id=f"view-{self.topic}",
            group=None,
            fetch_wait_ms=STAY_MS,
            queued_kbytes=65_536,
            detect_eof=True,
            monotonic=self._monotonic,
        )
        try:
            partitions = consumer.partitions_for_topic(self.topic)
            positions = self._usable_positions(consumer, partitions)
            consumer.assign({partition: positions.get(partition[1], BEGINNING) for partition in partitions})
            while not self._closed.is_set():
                records = consumer.consume(5_000, 0.5)
                dead_letters = self.apply(records)
                if dead_letters and self._publish:
                    publish_dead_letters(self._publish, dead_letters)
                for record in records:
                    positions[record.partition] = record.offset + 1
                if records or self._monotonic() - self._kept > SAVE_INTERVAL_S:
                    self._keep_positions(positions)
                self._current_at = max(self._current_at, consumer.current_at)
                if self._reason is not None and consumer.eof_partitions.issuperset(partitions):
                    self._reason = None
                    log.info("view is caught up", topic=self.topic, keys=len(self._store))
        finally:
            consumer.close()

    def _keep_positions(self, positions: dict[int, int]) -> None:
        self._store.commit(positions, self._clock())
        self._kept = self._monotonic()
        VIEW_KEYS.labels(self.topic).set(len(self._store))

    def _usable_positions(self, consumer: Consumer, partitions: Sequence[Partition]) -> dict[int, int]:
        """The stored positions, {} and an empty store when the topic cannot be read on from there."""
        positions, kept_at = self._store.positions()
        if not positions:
            return {}
        # Tombstones are kept for a day (schemas/topics.py): after half of it one could have been missed.
        stale = self._clock() - kept_at > MAX_POSITION_AGE_MS
        ends = consumer.watermark_offsets(partitions)
        if stale or any(positions.get(p[1], 0) > ends[p][1] for p in partitions):
            log.info("view starts over", topic=self.topic)
            self._store.clear()
            return {}
        return dict(positions)


def open_store(settings: ViewSettings, role: str, name: str, retention_s: int | None = None) -> Store:
    """The store of a role's view by the settings. Raises SettingsError when its directory is taken."""
    if settings.backend == "memory":
        return MemoryStore()
    return RocksStore(settings.directory / role / name, retention_s)


def start_views(views: Iterable[View[Any]], health: Health) -> None:
    """Start views and make readiness wait for them."""
    for view in views:
        health.require(f"view {view.topic}", view.not_ready)
        view.start()


async def caught_up(views: Iterable[View[Any]], stopping: asyncio.Event) -> bool:
    """Wait until every view is ready; False when the process is stopped first."""
    for view in views:
        while view.not_ready() and not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 0.02)
    return not stopping.is_set()
