"""A batch: what was read and is not stored yet, in chunks that are stored one by one; pure.

Most chunks are handed to the engine as they are (`container_of`). What it cannot read, or what is of an earlier version, is
decoded here (`decoded`), a small chunk at a time: Python's rows take ten times their bytes.
May import rows. Never: a store, a Kafka client, a clock read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import cast

from runtime.logs import get_logger
from runtime.records import ConsumerRecord, PartitionBatch
from schemas.codec import DecodeError, codec
from schemas.container import Container
from sinks.rows import SOURCES, Row, Table

log = get_logger("sink")
MAX_BYTES = 64 << 20
"""Of record values in one batch: dead letters may be a megabyte each."""
CHUNK = 10_000
"""Records decoded at once."""

Poison = tuple[ConsumerRecord, Exception]


@dataclass(slots=True, eq=False)
class Chunk:
    """Records of one table. `decode`: the engine does not read them, or not all. `part` of a chunk that did not go whole."""

    table: Table
    runs: list[PartitionBatch] = field(default_factory=list)
    decode: bool = False
    part: bool = False

    @property
    def count(self) -> int:
        return sum(len(run.values) for run in self.runs)

    def split(self) -> list[Chunk]:
        """The same in chunks of at most CHUNK records."""
        chunks: list[Chunk] = []
        capacity = 0
        for run in self.runs:
            start = 0
            while start < len(run.values):
                if not capacity:
                    chunks.append(Chunk(self.table, decode=self.decode, part=True))
                    capacity = CHUNK
                taken = range(start, min(start + capacity, len(run.values)))
                chunks[-1].runs.append(run.some(taken))
                capacity -= len(taken)
                start = taken.stop
        return chunks


@dataclass(slots=True)
class Batch:
    """What is committed at once. `offsets` are the next to read per (topic, partition)."""

    max_rows: int
    max_bytes: int = MAX_BYTES
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    poison: list[Poison] = field(default_factory=list)
    """What turned out to be no row."""
    count: int = 0
    size: int = 0
    _chunks: list[Chunk] = field(default_factory=list)

    def add(self, runs: Iterable[PartitionBatch]) -> None:
        """Take records in."""
        for run in runs:
            source = SOURCES[run.topic]
            framed = codec(source.name).framed(run.values) if source.table.undecoded else [False] * len(run.values)
            if all(framed):
                self._chunk(source.table, decode=False).runs.append(run)
            else:
                indices = range(len(framed))
                if any(framed):
                    self._chunk(source.table, decode=False).runs.append(run.some(list(compress(indices, framed))))
                others = [index for index in indices if not framed[index]]
                self._chunk(source.table, decode=True).runs.append(run.some(others))
            self.count += len(run.values)
            self.size += sum(map(len, filter(None, run.values)))
            self.offsets[run.topic, run.partition] = run.next_offset

    def _chunk(self, table: Table, *, decode: bool) -> Chunk:
        for chunk in self._chunks:
            if chunk.table is table and chunk.decode == decode and not chunk.part:
                return chunk
        self._chunks.append(Chunk(table, decode=decode))
        return self._chunks[-1]

    @property
    def capacity(self) -> int:
        """Records that still fit."""
        return 0 if self.size >= self.max_bytes else max(0, self.max_rows - self.count)

    def chunks(self) -> Iterator[Chunk]:
        """What is left to store, one by one; each comes again until it is `done`."""
        while self._chunks:
            first = self._chunks[0]
            if first.decode and first.count > CHUNK:
                self._chunks[:1] = first.split()
            yield self._chunks[0]

    def done(self, poison: Sequence[Poison] = ()) -> None:
        """The first chunk is stored, but for the poison in it."""
        del self._chunks[0]
        self.poison += poison

    def break_up(self) -> None:
        """The first chunk cannot be stored whole: find out which part of it."""
        chunk = self._chunks[0]
        if chunk.count > CHUNK:
            self._chunks[:1] = chunk.split()
        else:
            chunk.decode = chunk.part = True


def container_of(chunk: Chunk) -> Container:
    """The records of a chunk for the engine to decode."""
    container = Container(SOURCES[chunk.runs[0].topic].name)
    for run in chunk.runs:
        container.add(cast(Sequence[bytes], run.values), SOURCES[run.topic].lane)  # `add` left out what has no frame
    return container


def decoded(chunk: Chunk) -> tuple[list[Row], list[Poison]]:
    """The rows of a chunk, and the records that are not valid rows."""
    rows: list[Row] = []
    poison: list[Poison] = []
    for run in chunk.runs:
        source = SOURCES[run.topic]
        make = source.row
        for index, value in enumerate(run.values):
            if value is None and source.tombstones:
                continue
            try:
                rows.append(make(value))
            except DecodeError as exc:
                poison.append((run.record(index), exc))
            except Exception as exc:  # one record is one dead letter, whatever we did not think of
                log.exception("dead-lettered", topic=run.topic, partition=run.partition)
                poison.append((run.record(index), exc))
    return rows, poison


def columns_of(rows: list[Row]) -> list[tuple[object, ...]]:
    """Rows turned into columns: ClickHouse's native format is by column, and so three times as fast to write."""
    return list(zip(*rows, strict=True))
