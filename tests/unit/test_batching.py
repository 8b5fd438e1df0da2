"""Batches: pieces by table, offsets, bounds, and what could not become a row."""

from __future__ import annotations

import pytest

from runtime.records import ConsumerRecord, group_by_partition
from schemas.topics import DEAD_LETTERS, STATUS, requests_topic
from sinks import batching
from sinks.batching import Batch, Chunk, columns_of, container_of, decoded
from sinks.rows import EVENTS_TABLE, REQUESTS_TABLE
from tests.unit.test_rows import request, status

NORMAL = requests_topic("normal")


def requests(*offsets: int, value: bytes | None = None) -> list[ConsumerRecord]:
    return [ConsumerRecord(NORMAL, 1, offset, 0, None, value or request()) for offset in offsets]


def rest(batch: Batch) -> list[Chunk]:
    """Every piece, as if each were stored."""
    found = []
    for chunk in batch.chunks():
        found.append(chunk)
        batch.done()
    return found


def test_records_are_kept_by_table_and_offsets_point_past_the_last() -> None:
    batch = Batch(max_rows=10)
    batch.add(group_by_partition([*requests(5), ConsumerRecord(STATUS, 0, 8, 0, None, status())]))
    batch.add(group_by_partition(requests(6)))
    assert batch.offsets == {(NORMAL, 1): 7, (STATUS, 0): 9}
    assert (batch.count, batch.capacity) == (3, 7)
    assert {chunk.table.name: (chunk.count, chunk.decode) for chunk in rest(batch)} == {
        REQUESTS_TABLE.name: (2, False),
        EVENTS_TABLE.name: (1, False),
    }


def test_only_what_has_the_frame_is_left_to_the_store() -> None:
    batch = Batch(max_rows=10)
    strange = [None, b"", b"junk", b"\x00\x00\x00\x00\x07" + request()[5:], bytes(2 << 20)]
    batch.add(
        group_by_partition(
            [*requests(1), *(ConsumerRecord(NORMAL, 1, 2 + n, 0, None, v) for n, v in enumerate(strange)), *requests(9)]
        )
    )
    whole, odd = rest(batch)
    assert (whole.decode, container_of(whole).count) == (False, 2)
    rows, poison = decoded(odd)
    assert (odd.decode, rows, [record.offset for record, _ in poison]) == (True, [], [2, 3, 4, 5, 6])
    assert batch.offsets == {(NORMAL, 1): 10}


def test_piece_that_cannot_go_whole_is_broken_up_until_the_part_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "CHUNK", 2)
    batch = Batch(max_rows=10)
    batch.add(group_by_partition([*requests(0, 1, 2), *requests(3, value=request()[:-1]), *requests(4)]))
    seen = []
    for chunk in batch.chunks():
        seen.append((chunk.count, chunk.decode))
        bad = any(value == request()[:-1] for run in chunk.runs for value in run.values)
        if bad and not chunk.decode:
            batch.break_up()
        else:
            batch.done(decoded(chunk)[1] if chunk.decode else ())
    assert seen == [(5, False), (2, False), (2, False), (2, True), (1, False)]
    assert [record.offset for record, _ in batch.poison] == [3]


def test_what_comes_while_the_store_is_away_joins_the_piece_that_waits() -> None:
    batch = Batch(max_rows=10)
    for offset in range(4):
        batch.add(group_by_partition(requests(offset)))
        assert next(batch.chunks()).count == offset + 1


def test_dead_letters_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "CHUNK", 2)
    batch = Batch(max_rows=10)
    poison = [ConsumerRecord(DEAD_LETTERS, 0, n, 0, None, b"junk") for n in range(3)]
    batch.add(group_by_partition(poison))
    chunks = rest(batch)
    assert [(chunk.count, chunk.decode) for chunk in chunks] == [(2, True), (1, True)]
    assert [record for chunk in chunks for record, _ in decoded(chunk)[1]] == poison
    assert batch.offsets == {(DEAD_LETTERS, 0): 3}


def test_batch_is_full_by_rows_or_by_bytes() -> None:
    batch = Batch(max_rows=2, max_bytes=1_000)
    batch.add(group_by_partition(requests(0, 0, 0)))
    assert batch.capacity == 0
    large = Batch(max_rows=100, max_bytes=1_000)
    large.add(group_by_partition(requests(0, value=b"x" * 1_000)))
    assert large.capacity == 0


def test_columns_are_the_rows_turned() -> None:
    assert columns_of([(1, "a"), (2, "b")]) == [(1, 2), ("a", "b")]
