"""The bytes of timers that were not held, read again from their offsets.

A partition is read from the lowest offset that is wanted on; over a long stretch of what is not wanted it is started anew.
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
"""Well below the session: a broker that gives nothing for so long is asked again in the next turn."""
_FAR = 2_000
"""Offsets worth reading over rather than starting anew."""


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
            raise UnavailableError(f"{partition[0]} gives nothing within {TIMEOUT_S:.0f} s; is Kafka well?")
