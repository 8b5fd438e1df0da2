"""Header names that are not UTF-8, for aiokafka: it raises in the middle of a batch, and again at every retry.

Kafka takes any bytes for a header's name, and other clients write them. A batch is read as the library reads it, in C; only
where that raises, the rest of the batch is read by the library's own slow reader, and records with such a name are used
without headers, as in runtime/kafka/consumer.py.
May import aiokafka; a test fails when what is replaced here changes. Never: Faust, what is in a record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords

_UNREADABLE = "\udcff"
"""In the place of a name that is not UTF-8, which never holds half a character."""
_HEAD = struct.Struct(">qiib")  # base offset, length of what follows, leader epoch (or checksum), format
_LENGTH_ENDS = struct.calcsize(">qi")


class _Buffer(bytearray):
    """A bytearray in which everything that is decoded decodes; only header names are."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _Buffer(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        try:
            return super().decode(encoding, errors)
        except UnicodeDecodeError:
            return _UNREADABLE


class _SlowBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # final for type checkers, and made for exactly this format
    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer: bytearray = _Buffer(self._buffer)


def slow_records(raw: bytes, first: int) -> Iterator[Any]:
    """The records of a batch from the `first` on; those with an unreadable header name have no headers."""
    for index, record in enumerate(_SlowBatch(raw)):
        if index < first:
            continue
        if any(name == _UNREADABLE for name, _ in record.headers):
            record = _DefaultRecordPy(
                record.offset, record.timestamp, record.timestamp_type, record.key, record.value, []
            )
        yield record


class TolerantBatch:
    """A batch of the library, with another way to read it."""

    def __init__(self, batch: Any, data: Any, start: int, end: int) -> None:
        self._batch = batch
        self._place = data, start, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._batch:
                read += 1
                yield record
        except UnicodeDecodeError:
            data, start, end = self._place
            yield from slow_records(bytes(data[start:end]), read)


class TolerantRecords:
    """What a partition answered, batch by batch; takes the place of the library's MemoryRecords in its fetcher."""

    def __init__(self, data: Any) -> None:
        self._records: Any = MemoryRecords(data)
        self._data = data
        self._at = 0

    def size_in_bytes(self) -> int:
        """Of all batches."""
        return int(self._records.size_in_bytes())

    def has_next(self) -> bool:
        """Whether `next_batch` gives another one."""
        return bool(self._records.has_next())

    def next_batch(self) -> Any:
        """The next batch, None at the end. Raises CorruptRecordException."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        start, (_, length, _, magic) = self._at, _HEAD.unpack_from(self._data, self._at)
        self._at = start + _LENGTH_ENDS + length
        return TolerantBatch(batch, self._data, start, self._at) if magic >= 2 else batch  # older ones have no headers


def install() -> None:
    """Have aiokafka's fetcher read so, in this process."""
    fetcher.MemoryRecords = TolerantRecords
