"""How far a consumer group is behind, measured from outside: a stalled client cannot hide its own lag.

May import runtime.kafka and runtime.metrics. Never: what to do about it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from runtime.clock import system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.admin import Admin
from runtime.kafka.client import Partition
from runtime.logs import get_logger
from runtime.metrics import CONSUMER_LAG, CONSUMER_STUCK_SECONDS
from runtime.settings import KafkaSettings

log = get_logger("lag")
INTERVAL_S = 10.0

Positions = Callable[[], Mapping[Partition, int]]
"""How far this process has read the partitions it owns, of a group that keeps no offsets in Kafka."""


class StuckOffsets:
    """Seconds for which a partition's committed offset has not moved although there is lag."""

    def __init__(self) -> None:
        self._since: dict[Partition, tuple[int, float]] = {}

    def observe(self, committed: Mapping[Partition, int], lag: Mapping[Partition, int], now_s: float) -> float:
        """The longest such time over all partitions."""
        longest = 0.0
        for partition, offset in committed.items():
            before = self._since.get(partition)
            if not lag.get(partition) or before is None or before[0] != offset:
                self._since[partition] = (offset, now_s)
            else:
                longest = max(longest, now_s - before[1])
        return longest


def unread(admin: Admin, committed: Mapping[Partition, int], lag: Mapping[Partition, int]) -> dict[Partition, int]:
    """The lag without the partitions where nothing that is left is a record. Blocks. Raises UnavailableError."""
    behind = {partition: committed[partition] for partition, count in lag.items() if count}
    have = admin.with_records(behind) if behind else set()
    return {partition: count if partition in have else 0 for partition, count in lag.items()}


def _measured(
    admin: Admin, group: str, topics: Sequence[str], before: Mapping[Partition, int], positions: Positions | None = None
) -> tuple[dict[Partition, int], dict[Partition, int]]:
    """Committed offsets (or positions) and lag; a partition whose offset equals the one in `before` is looked into."""
    if positions is None:
        committed, lag = admin.group_offsets(group, topics)
    else:
        committed = dict(positions())
        lag = admin.lag_behind(committed) if committed else {}
    standing = {p: count for p, count in lag.items() if count and before.get(p) == committed[p]}
    return committed, {**lag, **unread(admin, committed, standing)}


async def report_lag(
    settings: KafkaSettings,
    group: str,
    topics: Sequence[str],
    stopping: asyncio.Event,
    positions: Positions | None = None,
) -> None:
    """Set the lag gauges of a group every ten seconds until stopped.

    Without `positions` the group's committed offsets count, of all its processes; with them, those of this process.
    """
    admin = Admin(settings, timeout_s=5)
    stuck = StuckOffsets()
    before = dict[Partition, int]()
    while not stopping.is_set():
        try:
            committed, lag = await asyncio.to_thread(_measured, admin, group, topics, before, positions)
        except UnavailableError as exc:
            log.debug("lag not measured", error=str(exc))
        else:
            for topic in topics:
                CONSUMER_LAG.labels(group, topic).set(sum(n for (t, _), n in lag.items() if t == topic))
            before = committed
            CONSUMER_STUCK_SECONDS.labels(group).set(stuck.observe(committed, lag, system_monotonic()))
        try:
            await asyncio.wait_for(stopping.wait(), INTERVAL_S)
        except TimeoutError:
            continue
