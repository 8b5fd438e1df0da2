"""A batch: rows by table, the offsets they reach to, the records that could not become rows; pure.

May import rows. What never enters here: a store, a Kafka client, a clock read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from runtime.records import InRecord
from schemas.codec import DecodeError
from sinks.rows import Row, Table, row_of

MAX_BYTES = 32 << 20
"""Of record values in one batch: dead letters may be a megabyte each."""


@dataclass(slots=True)
class Batch:
    """What is inserted at once. `rows` by table, `offsets` are the next to read per (topic, partition)."""

    max_rows: int
    max_bytes: int = MAX_BYTES
    rows: dict[Table, list[Row]] = field(default_factory=dict)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    poison: list[tuple[InRecord, DecodeError]] = field(default_factory=list)
    count: int = 0
    size: int = 0

    def add(self, records: Iterable[InRecord]) -> None:
        """Take records in; one that is no row is kept aside with the error."""
        for record in records:
            try:
                table, row = row_of(record)
            except DecodeError as exc:
                self.poison.append((record, exc))
            else:
                rows = self.rows.get(table)
                if rows is None:
                    self.rows[table] = [row]
                else:
                    rows.append(row)
            self.count += 1
            self.size += len(record.value or b"")
            self.offsets[record.topic, record.partition] = record.offset + 1

    @property
    def room(self) -> int:
        """Records that still fit."""
        return 0 if self.size >= self.max_bytes else max(0, self.max_rows - self.count)


def columns_of(rows: list[Row]) -> list[tuple[object, ...]]:
    """Rows turned into columns: ClickHouse's native format is by column, and so three times as fast to write."""
    return list(zip(*rows, strict=True))
