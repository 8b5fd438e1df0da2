"""The bytes of timers that were not held, read again from their offsets.

A partition is read from the lowest wanted offset on; a long gap without wanted offsets is skipped by a new assignment.
May import runtime. Never: what is in a record, a heap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from runtime.clock import Monotonic, system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.client import Partition
from runtime.records import ConsumerRecord

TIMEOUT_S = 2.0
"""Well below the session: if the broker sends nothing for this long, the next iteration asks again."""
_FAR = 2_000
"""Longest gap, in offsets, that is read through rather than skipped by a new assignment."""


class RereadConsumer(Protocol):
    """The part of runtime.kafka.Consumer that is used."""

    eof_partitions: set[Partition]

    def assign(self, offsets: Mapping[Partition, int]) -> None: ...
    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]: ...


def read_again(
    consumer: RereadConsumer, partition: Partition, offsets: Sequence[int], monotonic: Monotonic = system_monotonic
) -> dict[int, bytes]:
    """Offset → bytes; an offset that the log no longer has is left out. Raises UnavailableError without an answer in time."""
    found: dict[int, bytes] = {}
    try:
        for first, last in _stretches(sorted(offsets)):
            wanted = {offset for offset in offsets if first <= offset <= last}
            for record in _records(consumer, partition, first, last, monotonic):
                if record.offset in wanted and record.value is not None:
                    found[record.offset] = record.value
    finally:
        consumer.assign({})
    return found


def _stretches(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = previous = offsets[0]
    for offset in offsets[1:]:
        if offset - previous > _FAR:
            yield start, previous
            start = offset
        previous = offset
    yield start, previous


def _records(
    consumer: RereadConsumer, partition: Partition, first: int, last: int, monotonic: Monotonic
) -> Iterator[ConsumerRecord]:
    consumer.eof_partitions.clear()
    consumer.assign({partition: first})
    heard = monotonic()
    while True:
        # A few at a time: what is wanted may be large, and what follows it is not wanted at all.
        records = consumer.consume(100, 0.1)
        for record in records:
            if record.offset > last:
                return
            yield record
            if record.offset == last:
                return
        if partition in consumer.eof_partitions:
            return
        if records:
            heard = monotonic()
        elif monotonic() > heard + TIMEOUT_S:
            raise UnavailableError(
                f"no record from {partition[0]} for {TIMEOUT_S:.0f} s, but more are expected; check Kafka: `heliograph doctor`"
            )
