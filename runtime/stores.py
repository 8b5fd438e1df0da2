"""Where a view keeps its bytes: a dict, or RocksDB with the position it has read to, for restarts in seconds.

The only module that imports rocksdict. Never: Kafka, meaning of a value.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from runtime.errors import SettingsError

Positions = dict[int, int]
"""Partition → next offset to read."""

_POSITION_KEY = b"\0position"  # no Kafka key that Heliograph writes begins with NUL


class Store(Protocol):
    """Last value per key. Writes are visible after `commit`, which also keeps how far the topic was read."""

    def get(self, key: bytes) -> bytes | None: ...
    def put(self, key: bytes, value: bytes) -> None: ...
    def delete(self, key: bytes) -> None: ...
    def __len__(self) -> int: ...

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        """What has to be looked through for its age; nothing where the store ages by itself."""
        ...

    def positions(self) -> tuple[Positions, int]:
        """(positions, when they were kept in ms); ({}, 0) when nothing is kept."""
        ...

    def commit(self, positions: Mapping[int, int], now: int) -> None:
        """Keep what was written and the positions, together."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def close(self) -> None: ...


class MemoryStore:
    """Bytes in a dict; the position lives as long, so a restart reads the topic again."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._positions: tuple[Positions, int] = {}, 0
        self.get = self._values.get
        self.put = self._values.__setitem__

    def delete(self, key: bytes) -> None:
        self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return list(self._values.items())

    def positions(self) -> tuple[Positions, int]:
        return self._positions

    def commit(self, positions: Mapping[int, int], now: int) -> None:
        """A write is kept at once; how far it goes is for a reader that starts again in this process."""
        self._positions = dict(positions), now

    def clear(self) -> None:
        self._values.clear()
        self._positions = {}, 0

    def close(self) -> None:
        self._values.clear()


class RocksStore:
    """Bytes in RocksDB under `path`, which belongs to one process. Raises SettingsError when another one has it.

    With `retention_s`, compaction drops what was written longer ago.
    """

    def __init__(self, path: Path, retention_s: int | None = None) -> None:
        from rocksdict import AccessType, Options, Rdict, WriteBatch  # heavy, and wanted by few

        self._path = path
        access = AccessType.with_ttl(retention_s) if retention_s else AccessType.read_write()
        self._new_batch: Callable[[], Any] = lambda: WriteBatch(raw_mode=True)
        self._open: Callable[[], Any] = lambda: Rdict(str(path), Options(raw_mode=True), access_type=access)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = self._open()
        except Exception as exc:
            raise SettingsError(
                f"cannot open {path}: {exc}; give every process a directory of its own (views.directory)"
            ) from exc
        self._batch = self._new_batch()

    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self._db.get(key)
        return value

    def put(self, key: bytes, value: bytes) -> None:
        self._batch.put(key, value)

    def delete(self, key: bytes) -> None:
        self._batch.delete(key)

    def __len__(self) -> int:
        return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0)

    def items(self) -> Iterable[tuple[bytes, bytes]]:
        return ()

    def positions(self) -> tuple[Positions, int]:
        raw = self._db.get(_POSITION_KEY)
        if raw is None:
            return {}, 0
        kept = json.loads(raw)
        return {int(partition): offset for partition, offset in kept["offsets"].items()}, kept["at"]

    def commit(self, positions: Mapping[int, int], now: int) -> None:
        # One write batch: after a crash the data never lags behind the position, nor the other way round.
        self._batch.put(_POSITION_KEY, json.dumps({"offsets": dict(positions), "at": now}).encode())
        self._db.write(self._batch)
        self._batch = self._new_batch()

    def clear(self) -> None:
        self._db.close()
        shutil.rmtree(self._path, ignore_errors=True)
        self._db = self._open()
        self._batch = self._new_batch()

    def close(self) -> None:
        self._db.close()
