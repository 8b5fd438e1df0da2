"""The vendors' log of accepts: append-only, on disk before the client gets "accepted".

One JSON object a line, `seq` counting from 1. Accepts that arrive together share one write and one fsync, so the log
follows thousands of accepts a second. An incomplete last line (the machine stopped before the client was answered) is cut off.

May import the standard library only. Never: refused requests, a way to delete or to change a line.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)

_HEAD = re.compile(rb'\{"seq": (\d+), "at": "[^"]*", "kind": "([a-z0-9_]+)", ')
_READ_BYTES = 1 << 20


class GroundTruthError(Exception):
    """The log cannot be trusted or written: the simulator must stop."""


@dataclass(frozen=True, slots=True)
class Accept:
    """What one vendor accepted for one recipient."""

    kind: str
    to: str
    message_id: str | None
    body: str
    """What the recipient gets: a mail's source, an SMS's text, a push message's JSON. Bytes that are no UTF-8 are
    kept as surrogate escapes, so that the exact bytes can be had back."""
    provider_message_id: str | None = None


def _line(seq: int, at: str, accept: Accept) -> bytes:
    entry = {
        "seq": seq,
        "at": at,
        "kind": accept.kind,
        "to": accept.to,
        "message_id": accept.message_id,
        "provider_message_id": accept.provider_message_id,
        "body": accept.body,
    }
    return json.dumps(entry).encode("ascii") + b"\n"


def presentable(line: bytes) -> bytes:
    """A line as strict JSON readers take it: lone surrogates (bytes that were no UTF-8) become replacement signs."""
    if b"\\udc" not in line:
        return line
    entry = json.loads(line)
    clean = {
        name: value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else value
        for name, value in entry.items()
    }
    return json.dumps(clean).encode("ascii")


class GroundTruth:
    """The log of accepts. One process owns it; `append` belongs to the event loop, reading to any thread."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._now = now
        self._kinds: list[str] = []
        self._kind_of = array("B")  # per line, index into _kinds
        self._bounds = array("Q", [0])  # line n is between bounds n-1 and n
        self._counts: dict[str, int] = {}
        self._last_seq = 0
        self._pending: list[tuple[bytes, str, asyncio.Future[int]]] = []
        self._broken: GroundTruthError | None = None
        self._listeners: list[Callable[[], None]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except OSError as error:
            os.close(self._file)
            raise GroundTruthError(f"{path} is in use by another simulator") from error
        except GroundTruthError:
            os.close(self._file)
            raise

    # ------------------------------------------------------------ start

    def _load(self) -> None:
        """Index the log and cut off an incomplete last line."""
        size = os.fstat(self._file).st_size
        position = 0
        last = b""
        rest = b""
        while position < size:
            block = os.pread(self._file, _READ_BYTES, position)
            position += len(block)
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for line in lines:
                last = line
                self._index(line)
        if last and not _is_json(last):  # a write cut by a power loss can leave anything in its place
            self._counts[self._kinds[self._kind_of.pop()]] -= 1
            self._bounds.pop()
            self._last_seq -= 1
        end = self._bounds[-1]
        if end != size:
            log.warning("the log of accepts ended in an incomplete line of %d bytes: cut off", size - end)
            os.ftruncate(self._file, end)
            os.fsync(self._file)

    def _index(self, line: bytes) -> None:
        head = _HEAD.match(line)
        if head is None or int(head.group(1)) != self._last_seq + 1:
            raise GroundTruthError(
                f"{self._path}: line {self._last_seq + 1} is not an accept; move the file to another place"
            )
        self._add(self._last_seq + 1, head.group(2).decode(), len(line) + 1)

    def _add(self, seq: int, kind: str, length: int) -> None:
        if kind not in self._counts:
            self._counts[kind] = 0
            self._kinds.append(kind)
        self._kind_of.append(self._kinds.index(kind))
        self._bounds.append(self._bounds[-1] + length)
        self._counts[kind] += 1
        self._last_seq = seq  # last: other threads read up to here

    # ------------------------------------------------------------ write

    def append(self, accept: Accept) -> asyncio.Future[int]:
        """Log an accept; the future gives its seq once the line is on disk, and GroundTruthError if it cannot be."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self._broken is not None:
            future.set_exception(self._broken)
            return future
        seq = self._last_seq + len(self._pending) + 1
        at = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._pending.append((_line(seq, at, accept), accept.kind, future))
        if len(self._pending) == 1:
            asyncio.get_running_loop().call_soon(self._commit)  # what arrives in this turn of the loop goes along
        return future

    def _commit(self) -> None:
        """Write and sync what waits. On the event loop itself: a thread for it doubled the CPU of an accept, and what
        arrives during the sync makes up the next batch either way."""
        batch = self._pending
        self._pending = []
        try:
            view = memoryview(b"".join(line for line, _, _ in batch))
            while view:
                view = view[os.write(self._file, view) :]
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = GroundTruthError(f"{self._path} cannot be written: {error}")
            log.critical("the log of accepts cannot be written, nothing is accepted any more: %s", error)
            for _, _, future in batch:
                if not future.done():
                    future.set_exception(self._broken)
            return
        for line, kind, future in batch:
            self._add(self._last_seq + 1, kind, len(line))
            if not future.done():
                future.set_result(self._last_seq)
        for listener in self._listeners:
            listener()

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Call `listener` on the event loop after each write to disk."""
        self._listeners.append(listener)

    @property
    def broken(self) -> str | None:
        """Why nothing can be accepted any more, None while all is well."""
        return None if self._broken is None else str(self._broken)

    def close(self) -> None:
        """Commit what waits and close the file, after the last reader."""
        if self._pending:
            self._commit()
        os.close(self._file)

    # ------------------------------------------------------------ read

    @property
    def last_seq(self) -> int:
        """The seq of the last line on disk, 0 when there is none."""
        return self._last_seq

    def count(self, kind: str | None = None) -> int:
        """How many accepts are on disk."""
        return self._last_seq if kind is None else self._counts.get(kind, 0)

    def seqs(self, kind: str) -> Iterator[int]:
        """The seqs of one kind, ascending."""
        if kind in self._kinds:
            code = self._kinds.index(kind)
            yield from (index + 1 for index, of in enumerate(self._kind_of) if of == code)

    def read(self, seq: int) -> bytes:
        """One line without its line break."""
        start = self._bounds[seq - 1]
        end = self._bounds[seq]
        return os.pread(self._file, end - start, start).rstrip(b"\n")

    def lines(
        self, kind: str | None = None, since_seq: int = 0, limit: int | None = None, until_seq: int | None = None
    ) -> Iterator[bytes]:
        """At most `limit` lines with since_seq < seq <= until_seq, ascending, as they are on disk."""
        code = None if kind is None else self._kinds.index(kind) if kind in self._kinds else -1
        left = limit
        for index in range(max(since_seq, 0), self._last_seq if until_seq is None else until_seq):
            if left == 0:
                return
            if code is None or self._kind_of[index] == code:
                if left is not None:
                    left -= 1
                yield self.read(index + 1)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
