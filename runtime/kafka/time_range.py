"""The records that a topic took in a range of time, in batches.

    found = TimeRange(consumer, topic, since, until)
    for batch in found: ...          ends once every partition is read; empty batches while nothing arrives

The reader sets its own limit: it can check a clock at every batch, also at an empty one.
May import runtime.kafka. Never: a clock, a group, a commit.
"""

from __future__ import annotations

from collections.abc import Iterator

from runtime.kafka.consumer import Consumer
from runtime.records import ConsumerRecord

BATCH_RECORDS = 5_000
BATCH_S = 0.2
"""The longest wait for a batch."""


class TimeRange:
    """[since, until) of a topic, in ms since 1970, by Kafka's own timestamps; read once, from the start."""

    def __init__(self, consumer: Consumer, topic: str, since: int, until: int) -> None:
        """`consumer` has no group and detects the ends of partitions. Raises UnavailableError where Kafka does not answer."""
        self._consumer = consumer
        partitions = consumer.partitions_for_topic(topic)
        self._starts = consumer.offsets_for_times(dict.fromkeys(partitions, since))
        self._ends = consumer.offsets_for_times(dict.fromkeys(partitions, until))
        self.total = sum(max(0, self._ends[partition] - start) for partition, start in self._starts.items())
        """Offsets in the range: at least as many as its records."""

    def __iter__(self) -> Iterator[list[ConsumerRecord]]:
        ends = self._ends
        left = {partition for partition, start in self._starts.items() if start < ends[partition]}
        if not left:
            return
        self._consumer.eof_partitions.clear()
        self._consumer.assign({partition: self._starts[partition] for partition in left})
        while left:
            records = self._consumer.consume(BATCH_RECORDS, BATCH_S)
            for record in records:
                partition = (record.topic, record.partition)
                if record.offset + 1 >= ends[partition]:
                    left.discard(partition)
            left -= self._consumer.eof_partitions
            yield [record for record in records if record.offset < ends[record.topic, record.partition]]
