"""Fills ClickHouse again from the topics: after its disk was lost, or restored from an old copy.

    every topic of the sink, from its first record to its end as of now ──► the sink's own inserts

Every row is what the sink made, or will make, of the same record, so it may run beside the sinks and any number of times: what is there
already stays as it is. Offsets of the sinks' group are not touched. What does not decode has its dead letter already.
May import sinks and runtime.kafka. Never: deleting anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client

from runtime.clock import system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import Consumer
from runtime.records import PartitionBatch
from runtime.settings import Settings
from sinks import clickhouse, schema
from sinks.batching import Batch
from sinks.rows import SOURCES
from sinks.storing import store_batch

QUEUED_KBYTES = 65_536
TIMEOUT_S = 30.0
"""Without a record although some are expected."""


@dataclass(frozen=True, slots=True)
class TopicContents:
    """What a topic holds: offsets, and the time (ms) of its oldest record, None when it is empty."""

    topic: str
    table: str
    records: int
    oldest_at: int | None


def contents(settings: Settings) -> list[TopicContents]:
    """What could be stored again, by topic. Raises UnavailableError."""
    consumer = Consumer(settings.kafka, client_id="rebuild-look", group=None, detect_eof=True)
    try:
        ranges = _ranges(consumer)
        return [
            TopicContents(
                topic,
                source.table.name,
                sum(end - low for (name, _), (low, end) in ranges.items() if name == topic),
                _oldest(consumer, [(p, low) for p, (low, end) in ranges.items() if p[0] == topic and low < end]),
            )
            for topic, source in SOURCES.items()
        ]
    finally:
        consumer.close()


def _ranges(consumer: Consumer) -> dict[Partition, tuple[int, int]]:
    return consumer.watermark_offsets(p for topic in SOURCES for p in consumer.partitions_for_topic(topic))


def _oldest(consumer: Consumer, starts: Iterable[tuple[Partition, int]]) -> int | None:
    times = []
    for partition, low in starts:
        consumer.eof_partitions.clear()
        consumer.assign({partition: low})
        deadline = system_monotonic() + TIMEOUT_S
        while partition not in consumer.eof_partitions and system_monotonic() < deadline:
            if records := consumer.consume(1, 0.2):
                times.append(records[0].timestamp)
                break
    return min(times, default=None)


def rebuild(settings: Settings, on_progress: Callable[[int, int], None]) -> dict[str, int]:
    """Store every record of every topic of the sink; records looked at by table, and `undecodable`.

    Raises UnavailableError, StoreError.
    """
    schema.migrate(settings.clickhouse)
    client = clickhouse.connect(settings.clickhouse, timeout_s=120)
    consumer = Consumer(settings.kafka, client_id="rebuild", group=None, queued_kbytes=QUEUED_KBYTES, detect_eof=True)
    counts = dict.fromkeys([*dict.fromkeys(source.table.name for source in SOURCES.values()), "undecodable"], 0)
    try:
        ranges = {partition: span for partition, span in _ranges(consumer).items() if span[0] < span[1]}
        total, read = sum(end - low for low, end in ranges.values()), 0
        batch = Batch(settings.sink.max_rows)
        for runs in _read(consumer, ranges):
            batch.add(runs)
            for run in runs:
                counts[SOURCES[run.topic].table.name] += len(run.values)
                read += len(run.values)
            if not batch.capacity:
                counts["undecodable"] += _store(settings, client, batch)
                batch = Batch(settings.sink.max_rows)
                on_progress(read, total)
        counts["undecodable"] += _store(settings, client, batch)
        on_progress(total, total)
    finally:
        consumer.close()
        client.close()
    return counts


def _store(settings: Settings, client: Client, batch: Batch) -> int:
    """Store a batch; how many of its records are no rows."""
    store_batch(settings.clickhouse, client, batch)
    return len(batch.poison)


def _read(consumer: Consumer, ranges: Mapping[Partition, tuple[int, int]]) -> Iterator[list[PartitionBatch]]:
    """What lies in these ranges, and perhaps a little of what has come since."""
    consumer.assign({partition: low for partition, (low, _) in ranges.items()})
    left = set(ranges)
    heard = system_monotonic()
    while left:
        runs = consumer.consume_batches(10_000, 0.5)
        if runs:
            heard = system_monotonic()
            yield runs
        elif system_monotonic() > heard + TIMEOUT_S:
            raise UnavailableError(
                f"no record for {TIMEOUT_S:.0f} s, but more are expected; check Kafka: `heliograph doctor`"
            )
        left = {
            partition
            for partition in left - consumer.eof_partitions
            if (consumer.position(partition) or 0) < ranges[partition][1]
        }
