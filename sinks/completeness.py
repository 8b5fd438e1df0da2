"""Does ClickHouse have what the sink has committed? A store that lost its disk is empty, and adds up.

The committed offsets of the requests topics say how many records were stored; a sample of those records says whether they are
there still. Fewer rows than records alone prove nothing: a request that came twice, or came back from a timer, is one row.
May import runtime.kafka and clickhouse. Never: a repair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime import ids
from runtime.clock import system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.admin import Admin
from runtime.kafka.client import Partition
from runtime.kafka.consumer import Consumer
from runtime.settings import Settings
from schemas.codec import DecodeError, codec
from schemas.events import LANES
from schemas.identity import hour_of
from schemas.topics import requests_topic
from sinks import clickhouse
from sinks.role import GROUP
from sinks.rows import MAX_TIME_MS

SAMPLE = 8
"""Places looked at per partition."""
TIMEOUT_S = 10.0
_head = codec("NotificationRequest").reader("notification_id", "tenant")
"""(notification_id, tenant)"""


@dataclass(frozen=True, slots=True)
class Completeness:
    """`records` are those that the topics still hold and the sink has committed, `rows` those of the same time in ClickHouse."""

    records: int
    rows: int
    sampled: int
    absent: int
    """Of the sample, requests that ClickHouse does not have."""

    @property
    def missing(self) -> int:
        """Requests that are missing, at least; 0 when the sample is all there."""
        return max(self.absent, self.records - self.rows) if self.absent else 0


def compare(settings: Settings) -> Completeness:
    """Look; where the tables are gone, nothing is there. Raises UnavailableError, StoreError."""
    topics = [requests_topic(lane) for lane in LANES]
    committed, _ = Admin(settings.kafka, timeout_s=TIMEOUT_S).group_offsets(GROUP, topics)
    records, sample = _sample(settings, committed)
    if not sample:
        return Completeness(records, 0, 0, 0)
    distinct = len({nid for _, nid in sample})
    try:
        found = _stored(settings, sample)
    except clickhouse.TablesMissingError:
        return Completeness(records, 0, len(sample), distinct)
    return Completeness(records, found["rows"], len(sample), distinct - found["there"])


def _stored(settings: Settings, sample: Sequence[tuple[str, str]]) -> Mapping[str, int]:
    """`there`, how many of the sample are stored, and `rows`, all of the same time. Raises UnavailableError, StoreError."""
    client = clickhouse.connect(settings.clickhouse, timeout_s=TIMEOUT_S)
    try:
        hours = [hour_of(min(ids.accepted_at(nid), MAX_TIME_MS)) for _, nid in sample]
        rows = clickhouse.select(
            settings.clickhouse,
            client,
            "requests_there",
            {
                "tenants": sorted({tenant for tenant, _ in sample}),
                "hours": sorted(set(hours)),
                "ids": [nid.replace("-", "") for _, nid in sample],
                "since": min(hours),
            },
        )
    finally:
        client.close()
    return rows[0]


def _sample(settings: Settings, committed: Mapping[Partition, int]) -> tuple[int, Sequence[tuple[str, str]]]:
    """How many records are kept below the committed offsets, and (tenant, id) of some of them."""
    consumer = Consumer(settings.kafka, client_id="completeness", group=None, detect_eof=True)
    found: dict[str, str] = {}
    records = 0
    deadline = system_monotonic() + 3 * TIMEOUT_S
    try:
        kept = consumer.watermark_offsets(committed)
        for partition, end in committed.items():
            low, _ = kept[partition]
            if end <= low:
                continue
            records += end - low
            step = max(1, (end - low) // SAMPLE)
            for place in range(low, end, step):
                if system_monotonic() > deadline:
                    raise UnavailableError("the requests topics cannot be read in time; try again")
                consumer.eof_partitions.clear()
                consumer.assign({partition: place})
                _read_one(consumer, partition, end, found)
    finally:
        consumer.close()
    return records, [(tenant, nid) for nid, tenant in found.items()]


def _read_one(consumer: Consumer, partition: Partition, end: int, found: dict[str, str]) -> None:
    """The first usable request from where the consumer stands, below `end`."""
    deadline = system_monotonic() + TIMEOUT_S
    while system_monotonic() < deadline and partition not in consumer.eof_partitions:
        for record in consumer.consume(10, 0.2):
            if record.offset >= end:
                return
            try:
                nid, tenant = _head(record.value)
                ids.accepted_at(nid)
            except (DecodeError, ValueError):
                continue
            if ids.is_canonical(nid):
                found[nid] = tenant
                return
