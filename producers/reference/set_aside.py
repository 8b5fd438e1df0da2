"""Outbox rows that Kafka refuses for their size: kept, reported and retried, while the other rows continue.

    | event                                          | the row                                                       |
    |------------------------------------------------|---------------------------------------------------------------|
    | Kafka refuses it: its topic's limit is lowered | stays in the outbox, is skipped; logged, counted, `degraded`  |
    | a newer row of its key is published            | is deleted with that: the newer one replaces it               |
    | RETRY_S have passed                            | the smallest are tried again, all of them if those succeed    |

Nothing is lost: every router needs the row, so it stays for an operator to fix and is not dead-lettered.
May import the standard library. Never: Kafka, SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

RETRY_S = 15.0
MAX_TRIED = 20
"""Of those set aside that are tried at once: each costs a request of its own."""


class OutboxEntry(NamedTuple):
    """A row of the outbox."""

    id: int
    topic: str
    key: str
    value: bytes | None

    @property
    def size(self) -> int:
        """Of key and value, in bytes."""
        return len(self.key.encode()) + len(self.value or b"")


class _Refused(NamedTuple):
    topic: str
    key: str
    size: int


class SetAside:
    """The rows to skip, by id; `now_s` is of a monotonic clock."""

    def __init__(self) -> None:
        self._rows: dict[int, _Refused] = {}
        self._tried: set[int] = set()
        self._retry_at = 0.0

    def ids_to_skip(self, now_s: float) -> list[int]:
        """The ids to leave alone in the next batch; when their time has come, the smallest are not among them."""
        if self._rows and now_s >= self._retry_at:
            self._retry_at = now_s + RETRY_S
            self._tried.update(sorted(self._rows, key=lambda id_: (self._rows[id_].size, id_))[:MAX_TRIED])
        return [id_ for id_ in self._rows if id_ not in self._tried]

    def refused(self, entries: Iterable[OutboxEntry], now_s: float) -> list[OutboxEntry]:
        """Kafka takes none of these; those among them that were not known."""
        new = []
        for entry in entries:
            if entry.id in self._tried:
                self._tried.clear()  # the others need not be tried
            if entry.id not in self._rows:
                new.append(entry)
                self._rows[entry.id] = _Refused(entry.topic, entry.key, entry.size)
        if new and len(new) == len(self._rows):
            self._retry_at = now_s + RETRY_S
        return new

    def done(self, published: Sequence[OutboxEntry]) -> list[int]:
        """Ids of rows that these published ones replace: of the same key and older. Pass them to `forget`."""
        if not self._rows:
            return []
        newest: dict[tuple[str, str], int] = {}
        for entry in published:
            newest[entry.topic, entry.key] = max(entry.id, newest.get((entry.topic, entry.key), 0))
        return [id_ for id_, row in self._rows.items() if id_ <= newest.get((row.topic, row.key), 0)]

    def forget(self, ids: Iterable[int]) -> None:
        """These rows are deleted. When all that were tried went out, the limit is raised: the others are tried at once."""
        for id_ in ids:
            self._rows.pop(id_, None)
            if id_ in self._tried:
                self._tried.discard(id_)
                if not self._tried:
                    self._rows.clear()

    def count(self) -> int:
        """How many rows wait."""
        return len(self._rows)

    def trouble(self) -> str | None:
        """Why some reference data does not go out; None when all does."""
        if not self._rows:
            return None
        topics = ", ".join(sorted({row.topic for row in self._rows.values()}))
        largest = max(row.size for row in self._rows.values())
        return (
            f"{len(self._rows)} rows of up to {largest:,} bytes are larger than {topics} takes: "
            "see `heliograph topics diff`; they go out once max.message.bytes allows them"
        )
