"""Limits a sender's memory: bytes of records that are queued, parked or in flight; pure.

One budget per process. A lane stops reading at its share of it, as with the window, so that a bulk load leaves capacity for
the lanes above it; but a part of the budget is each lane's own, and of that a part each partition's, whatever the others hold:

    total held ≥ share of the lane    and lane's held ≥ RESERVED    and partition's held ≥ its part of RESERVED → paused
    all three at less than half, or any one of them → read on

The wide gap is on purpose: a paused partition's fetched records are thrown away, and at small gaps everything is fetched three
times. Together the partitions hold at most the budget plus one slice of records each.
May import records. Never: Kafka, a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from runtime.kafka.client import Partition
from runtime.records import ConsumerRecord, size_of
from schemas.events import LANES
from senders.lane_share import LANE_SHARE

RESERVED = 1 / 16
"""Of the budget, of each lane."""
SLICE = 1 / 64
"""Of the budget: as much is taken at a time, by the size that records had of late."""
MAX_SLICE = 2_000
"""Records taken at a time."""
_SHARED = 1 - RESERVED * (2 * len(LANES) - 1)
"""Of the budget. Beyond it a lane may still fill its reserve by one partition and by the parts of all its others, twice
the reserve; the lane that filled what is shared only the latter."""


class PartitionBuffer:
    """What is held of one partition; the fields are the owner's."""

    partition: Partition
    lane: str
    backlog: deque[ConsumerRecord]
    """Read, and not looked at yet."""
    size: int
    """Bytes of the backlog, and of what was taken from it and not let go."""
    paused: bool

    def hold(self, record: ConsumerRecord) -> int:
        """Take a record in; its bytes."""
        size = size_of(record.key, record.value, record.headers)
        self.backlog.append(record)
        self.size += size
        return size

    def let_go(self, record: ConsumerRecord) -> None:
        """The bytes of a record that is recorded, or that belongs to another owner now, are free again."""
        self.size -= size_of(record.key, record.value, record.headers)


class ReadAhead:
    """Says which partitions to stop reading, and which to read on."""

    def __init__(self, budget: int, records: int) -> None:
        """`budget` is in bytes, `records` the longest backlog of a partition."""
        self._budget = budget
        self._records = records
        self._mean = 65_536.0  # until something is known: rather too few

    @property
    def slice(self) -> int:
        """How many records to take at a time."""
        return max(1, min(MAX_SLICE, int(self._budget * SLICE / self._mean)))

    def took(self, records: int, size: int) -> None:
        """Learn from what was taken how large records are."""
        if records:
            self._mean = (self._mean + max(1.0, size / records)) / 2

    def watch(self, held: Collection[PartitionBuffer]) -> tuple[list[Partition], list[Partition]]:
        """(partitions to pause, partitions to resume), marked as such already."""
        total = sum(it.size for it in held)
        lanes = {lane: [it for it in held if it.lane == lane] for lane in LANES}
        pause: list[Partition] = []
        resume: list[Partition] = []
        for lane, partitions in lanes.items():
            of_lane = sum(it.size for it in partitions)
            for it in partitions:
                gap = 0.5 if it.paused else 1.0
                reserved = self._budget * RESERVED * gap
                full = (
                    total >= self._budget * _SHARED * LANE_SHARE[lane] * gap
                    and of_lane >= reserved
                    and it.size >= reserved / len(partitions)
                )
                paused = full or len(it.backlog) > self._records * gap
                if paused != it.paused:
                    it.paused = paused
                    (pause if paused else resume).append(it.partition)
        return pause, resume
