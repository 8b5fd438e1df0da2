"""The last records of the status topic, as they came, in a bounded number of bytes; found by notification and by place.

Written by the hub's thread, read from any.
May import the standard library. Never: a decoded record.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tracking.live.places import Place

OVERHEAD_BYTES = 300
"""What an entry takes beside its key and value: the tuple, its numbers, its share of the index."""


class Entry(NamedTuple):
    """A record of the topic."""

    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: bytes | None


class Ring:
    """Holds every record from `starts()` to the last one added."""

    def __init__(self, starts: Sequence[int], max_bytes: int) -> None:
        self._starts = list(starts)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: deque[Entry] = deque()
        self._by_key: dict[bytes, list[Entry]] = {}
        self._lock = threading.Lock()

    def add(self, entries: Iterable[Entry]) -> None:
        """Records in the order of their partitions; the oldest make room."""
        with self._lock:
            for entry in entries:
                self._entries.append(entry)
                self._by_key.setdefault(entry.key, []).append(entry)
                self._bytes += _size(entry)
            while self._bytes > self._max_bytes and self._entries:
                oldest = self._entries.popleft()
                self._bytes -= _size(oldest)
                self._starts[oldest.partition] = oldest.offset + 1
                same = self._by_key[oldest.key]
                if len(same) == 1:
                    del self._by_key[oldest.key]
                else:
                    same.pop(0)

    def of(self, key: bytes) -> list[Entry]:
        """Those of a notification, oldest first."""
        with self._lock:
            return list(self._by_key.get(key, ()))

    def starts(self) -> Place:
        """Per partition the offset from which on nothing is missing."""
        with self._lock:
            return tuple(self._starts)

    def since(self, place: Place) -> list[Entry] | None:
        """Everything from a place on, in the order it came; None when the ring begins later."""
        with self._lock:
            if any(offset < start for offset, start in zip(place, self._starts, strict=True)):
                return None
            entries = list(self._entries)
        return [entry for entry in entries if entry.offset >= place[entry.partition]]

    def __len__(self) -> int:
        return len(self._entries)


def _size(entry: Entry) -> int:
    return OVERHEAD_BYTES + len(entry.key) + len(entry.value or b"")
