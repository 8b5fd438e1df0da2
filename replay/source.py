"""Records of a topic: all of a range of time, or just those at given positions.

May import runtime.kafka. Never: a group, a commit, a decision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from replay.plan import RecordPosition
from runtime.clock import system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import Consumer
from runtime.kafka.time_range import TimeRange
from runtime.records import ConsumerRecord
from runtime.settings import KafkaSettings

TIMEOUT_S = 30.0
"""Without a record from a partition that has some."""
_FAR = 20_000
"""Offsets worth reading over rather than starting anew."""


def scan(
    settings: KafkaSettings, topic: str, since: int, until: int, on_progress: Callable[[int, int], None]
) -> Iterator[ConsumerRecord]:
    """Every record that the topic took in [since, until); `on_progress(read, of)` hears how far it is. Raises UnavailableError."""
    consumer = Consumer(settings, client_id="replay-scan", group=None, queued_kbytes=65_536, detect_eof=True)
    try:
        found = TimeRange(consumer, topic, since, until)
        read = 0
        heard = system_monotonic()
        for records in found:
            if records:
                heard = system_monotonic()
                yield from records
                read += len(records)
                on_progress(read, found.total)
            elif system_monotonic() > heard + TIMEOUT_S:
                raise UnavailableError(
                    f"no record from {topic} for {TIMEOUT_S:.0f} s, but more are expected; check Kafka: `heliograph doctor`"
                )
    finally:
        consumer.close()


class Reader:
    """Reads single records; positions are asked for in the order of partitions and offsets."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._consumer = Consumer(settings, client_id="replay", group=None, queued_kbytes=16_384, detect_eof=True)
        self._partition: Partition | None = None
        self._next = 0
        self._read: deque[ConsumerRecord] = deque()

    def read(self, positions: Sequence[RecordPosition]) -> dict[RecordPosition, ConsumerRecord]:
        """What is still there of these. Raises UnavailableError."""
        found: dict[RecordPosition, ConsumerRecord] = {}
        wanted: dict[Partition, list[int]] = {}
        for position in positions:
            wanted.setdefault((position.topic, position.partition), []).append(position.offset)
        kept = self._consumer.watermark_offsets(wanted)
        for partition, offsets in wanted.items():
            low, high = kept[partition]
            for record in self._records(partition, max(low, min(offsets)), min(max(offsets), high - 1)):
                found[RecordPosition(record.topic, record.partition, record.offset)] = record
        return {position: found[position] for position in positions if position in found}

    def _records(self, partition: Partition, first: int, last: int) -> Iterator[ConsumerRecord]:
        if first > last:
            return
        if partition != self._partition or not self._next <= first <= self._next + _FAR:
            self._consumer.assign({partition: first})
            self._partition, self._next = partition, first
            self._read.clear()
        self._consumer.eof_partitions.clear()
        heard = system_monotonic()
        while self._next <= last:
            if not self._read:
                self._read.extend(self._consumer.consume(2_000, 0.2))
                if not self._read and partition in self._consumer.eof_partitions:
                    return
                if not self._read and system_monotonic() > heard + TIMEOUT_S:
                    raise UnavailableError(
                        f"no record from {partition[0]} for {TIMEOUT_S:.0f} s, but more are expected; "
                        "check Kafka: `heliograph doctor`"
                    )
                continue
            heard = system_monotonic()
            if self._read[0].offset > last:  # a gap: what was wanted is not there
                return
            record = self._read.popleft()
            self._next = record.offset + 1
            if record.offset >= first:
                yield record

    def close(self) -> None:
        self._consumer.close()
