"""The limits of one provider account, its rate and its requests at once, and one process's part of them; pure.

May import the standard library and the clock. Never: waiting, a provider, a message.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from runtime.clock import Monotonic, system_monotonic

Cell = tuple[str, int]
"""(lane, partition) of a channel's dispatch topics."""
_MIN_RATE = 1e-9
"""Smallest rate: below it no message would ever be sent, and its inverse is too large to calculate with."""


class TokenBucket:
    """`rate` requests a second on average, a tenth of a second's worth (at least one) at once."""

    def __init__(self, rate: float, monotonic: Monotonic = system_monotonic) -> None:
        self._monotonic = monotonic
        self._next = monotonic()
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Change the rate; what was taken stays taken."""
        self._interval = 1.0 / max(rate, _MIN_RATE)
        self._burst_s = max(0.1, self._interval)

    def ready(self) -> bool:
        """Whether a token may be taken now."""
        return self._next <= self._monotonic() + self._burst_s - self._interval + 1e-9

    def take(self) -> None:
        """Take one token; ask `ready` first."""
        self._next = max(self._next, self._monotonic()) + self._interval


def part_of(limit: int, owned: Collection[Cell], partitions: Mapping[str, int]) -> int:
    """How many of `limit` requests at once belong to the owner of these partitions, given each lane's number of them.

    Whole slots, dealt out once: the parts of all owners add up to `limit`, whoever owns what. They are spread evenly over
    the partition numbers, because the group gives a process the same numbers of every lane, and from lane to lane in turn,
    because a process may also serve one lane alone. So a part is 0 only where there are more processes than slots, or almost.
    """
    numbers = max(partitions.values(), default=0)
    if not numbers:
        return 0
    part = 0
    for number in {number for _, number in owned}:
        lanes = [lane for lane, count in partitions.items() if number < count]
        for slot in range(number * limit // numbers, (number + 1) * limit // numbers):
            part += (lanes[slot % len(lanes)], number) in owned
    return part
