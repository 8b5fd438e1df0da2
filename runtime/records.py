"""Kafka records as plain values, so that pure code needs no Kafka client.

May import the standard library. Never: a client's types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

Headers = Sequence[tuple[str, bytes]]


class ConsumerRecord(NamedTuple):
    """A record as it was read."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds since the epoch, as the topic keeps it."""
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class PartitionBatch:
    """Records of one partition in their order, for who takes many and looks at few: only the values are at hand."""

    topic: str
    partition: int
    values: Sequence[bytes | None]
    record: Callable[[int], ConsumerRecord]
    """The i-th of them, whole."""
    next_offset: int
    """Where to read on."""

    def some(self, indices: Sequence[int]) -> PartitionBatch:
        """These of them. Where to read on stays as it is."""
        values = [self.values[i] for i in indices]
        record = self.record
        return PartitionBatch(self.topic, self.partition, values, lambda i: record(indices[i]), self.next_offset)


def group_by_partition(records: Sequence[ConsumerRecord]) -> list[PartitionBatch]:
    """Records as runs, in their order."""
    runs = []
    for (topic, partition), group in groupby(records, lambda record: (record.topic, record.partition)):
        run = list(group)
        runs.append(PartitionBatch(topic, partition, [each.value for each in run], run.__getitem__, run[-1].offset + 1))
    return runs


def size_of(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """Bytes that a record brings with it, whatever frames them."""
    # A header's value may be null on the wire.
    return len(key or b"") + len(value or b"") + sum(len(name) + len(held or b"") for name, held in headers)


class ProducerRecord(NamedTuple):
    """A record to publish; partition -1 lets the key decide (murmur2)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int = -1
