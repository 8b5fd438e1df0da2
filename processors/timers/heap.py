"""The pending timers of one partition: the last record per id wins, the earliest due comes first; pure.

While a partition is read from its beginning nothing is ordered: most of what is read then is superseded or ended by what
follows, and one heapify at the end costs a fraction of a million pushes.
The bytes of timers are held as long as there is room for them; of the others only the size is kept, and whoever needs the
bytes reads them again from their offset.
May import the standard library. Never: Kafka, a clock read, what is in a record.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

PendingTimer = tuple[int, int, bytes, bytes | int]
"""(due_at, offset, key, record bytes or how many there are): one object in the map and in the order; offsets are unique, so
the rest is never compared."""

_SLACK = 1_000


def size_of(entry: PendingTimer) -> int:
    """Bytes of an entry's record."""
    value = entry[3]
    return value if isinstance(value, int) else len(value)


@dataclass(slots=True)
class MemoryBudget:
    """How many bytes of records may be held, by all heaps of a process together."""

    limit: int
    used: int = 0

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes, which are then used."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


class Heap:
    """Key → entry, and the entries by due time."""

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        self.next_offset = 0
        """Where to read on."""
        self._budget = budget if budget is not None else MemoryBudget(1 << 62)
        self._pending: dict[bytes, PendingTimer] = {}
        self._order: list[PendingTimer] | None = None
        self._left_order: set[int] = set()  # offsets of what came up and is still pending
        self._stale = 0  # bytes in the order that are not pending any more

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def ordered(self) -> bool:
        """Whether `due` may be asked."""
        return self._order is not None

    def get(self, key: bytes) -> PendingTimer | None:
        """The pending timer of a key."""
        return self._pending.get(key)

    def put(self, key: bytes, due_at: int, offset: int, value: bytes) -> None:
        """A timer; it takes the place of an earlier one with its key."""
        self._forget(key)
        entry = (due_at, offset, key, value if self._budget.take(len(value)) else len(value))
        self._pending[key] = entry
        if self._order is not None:
            heapq.heappush(self._order, entry)
            self._tidy(self._order)

    def drop(self, key: bytes) -> None:
        """The timer has ended."""
        if self._forget(key) and self._order is not None:
            self._tidy(self._order)

    def again(self, entries: list[PendingTimer]) -> None:
        """Timers that came up and did not end: they come up again."""
        for entry in entries:
            if self._pending.get(entry[2]) is entry and entry[1] in self._left_order and self._order is not None:
                self._left_order.discard(entry[1])
                heapq.heappush(self._order, entry)

    def clear(self) -> None:
        """Forget every timer, and give back the room."""
        for key in [*self._pending]:
            self._forget(key)
        self._order = None

    def _forget(self, key: bytes) -> bool:
        entry = self._pending.pop(key, None)
        if entry is None:
            return False
        held = len(entry[3]) if isinstance(entry[3], bytes) else 0
        self._budget.used -= held
        if entry[1] in self._left_order:
            self._left_order.discard(entry[1])
        else:
            self._stale += held
        return True

    def order(self) -> None:
        """Bring what is pending in order of due times."""
        self._order = [entry for entry in self._pending.values() if entry[1] not in self._left_order]
        heapq.heapify(self._order)
        self._stale = 0

    def _tidy(self, order: list[PendingTimer]) -> None:
        # What was replaced or dropped stays in the order, bytes and all, until its time has come, which may be a month:
        # it is swept out once it is more than the rest, or than may be held, so every sweep is paid for by as many drops.
        if len(order) > 2 * len(self._pending) + _SLACK or self._stale > self._budget.limit:
            self.order()

    def due(self, now: int, limit: int, max_bytes: int = 1 << 62) -> list[PendingTimer]:
        """Up to `limit` timers due at `now`, of `max_bytes` and one more, earliest first.

        They leave the order, and stay pending until dropped.
        """
        found: list[PendingTimer] = []
        order = self._order or []
        taken = 0
        while order and order[0][0] <= now and len(found) < limit and taken < max_bytes:
            entry = heapq.heappop(order)
            if self._pending.get(entry[2]) is entry:
                self._left_order.add(entry[1])
                found.append(entry)
                taken += size_of(entry)
        return found

    def next_due(self) -> int | None:
        """When the next timer is due; may be too early, never too late; None without one."""
        return self._order[0][0] if self._order else None
