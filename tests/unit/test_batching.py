"""Batches: columns, offsets, bounds, and what could not become a row."""

from __future__ import annotations

from runtime.records import InRecord
from schemas.topics import DEAD_LETTERS, STATUS, requests_topic
from sinks.batching import Batch, columns_of
from sinks.rows import EVENTS_TABLE, REQUESTS_TABLE
from tests.unit.test_rows import request, status

NORMAL = requests_topic("normal")


def test_rows_are_kept_by_table_and_offsets_point_past_the_last() -> None:
    batch = Batch(max_rows=10)
    batch.add([InRecord(NORMAL, 1, 5, 0, None, request()), InRecord(STATUS, 0, 8, 0, None, status())])
    batch.add([InRecord(NORMAL, 1, 6, 0, None, request())])
    assert {table.name: len(rows) for table, rows in batch.rows.items()} == {
        REQUESTS_TABLE.name: 2, EVENTS_TABLE.name: 1,
    }  # fmt: skip
    assert batch.offsets == {(NORMAL, 1): 7, (STATUS, 0): 9}
    assert (batch.count, batch.room) == (3, 7)


def test_poison_is_kept_aside_and_its_offset_counts() -> None:
    batch = Batch(max_rows=10)
    poison = InRecord(DEAD_LETTERS, 0, 3, 0, None, b"junk")
    batch.add([poison])
    assert [record for record, _ in batch.poison] == [poison]
    assert batch.offsets == {(DEAD_LETTERS, 0): 4}
    assert not batch.rows


def test_batch_is_full_by_rows_or_by_bytes() -> None:
    batch = Batch(max_rows=2, max_bytes=1_000)
    batch.add([InRecord(NORMAL, 0, 0, 0, None, request())] * 3)
    assert batch.room == 0
    large = Batch(max_rows=100, max_bytes=1_000)
    large.add([InRecord(NORMAL, 0, 0, 0, None, b"x" * 1_000)])
    assert large.room == 0


def test_columns_are_the_rows_turned() -> None:
    assert columns_of([(1, "a"), (2, "b")]) == [(1, 2), ("a", "b")]
