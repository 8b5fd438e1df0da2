"""The pending timers of one partition: the last record per id wins, the earliest due comes first; pure.

While a partition is read from its beginning nothing is ordered: most of what is read then is superseded or ended by what
follows, and one heapify at the end costs a fraction of a million pushes.
May import the standard library. What never enters here: Kafka, a clock read, what is in a record.
"""

from __future__ import annotations

import heapq

Entry = tuple[int, int, bytes, bytes]
"""(due_at, offset, key, record bytes): one object in the map and in the order; offsets are unique, so the rest is never compared."""

_SLACK = 1_000


class Heap:
    """Key → entry, and the entries by due time."""

    def __init__(self) -> None:
        self.next_offset = 0
        """Where to read on."""
        self._pending: dict[bytes, Entry] = {}
        self._order: list[Entry] | None = None

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def ordered(self) -> bool:
        """Whether `due` may be asked."""
        return self._order is not None

    def get(self, key: bytes) -> Entry | None:
        """The pending timer of a key."""
        return self._pending.get(key)

    def put(self, key: bytes, due_at: int, offset: int, value: bytes) -> None:
        """A timer; it takes the place of an earlier one with its key."""
        entry = (due_at, offset, key, value)
        self._pending[key] = entry
        if self._order is not None:
            heapq.heappush(self._order, entry)
            self._tidy(self._order)

    def drop(self, key: bytes) -> None:
        """The timer has ended."""
        if self._pending.pop(key, None) is not None and self._order is not None:
            self._tidy(self._order)

    def order(self) -> None:
        """Bring what is pending in order of due times."""
        self._order = list(self._pending.values())
        heapq.heapify(self._order)

    def _tidy(self, order: list[Entry]) -> None:
        # What was replaced or dropped stays in the order, bytes and all, until its time has come, which may be a month:
        # it is swept out once it is more than the rest, so every sweep is paid for by as many drops.
        if len(order) > 2 * len(self._pending) + _SLACK:
            self.order()

    def due(self, now: int, limit: int) -> list[Entry]:
        """Up to `limit` timers due at `now`, earliest first; they leave the order, and stay pending until dropped."""
        found: list[Entry] = []
        order = self._order or []
        while order and order[0][0] <= now and len(found) < limit:
            entry = heapq.heappop(order)
            if self._pending.get(entry[2]) is entry:
                found.append(entry)
        return found

    def next_due(self) -> int | None:
        """When the next timer is due; may be too early, never too late; None without one."""
        return self._order[0][0] if self._order else None
