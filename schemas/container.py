"""Framed records as an Avro object container file, without decoding one: for a reader that decodes them itself, in bulk.

    header | one block: frame, record 1, mark, lane, frame, record 2, mark, lane, ... | sync marker

The frame is a field of the file's schema, so that a framed record goes in as it is. An encoded record says nowhere how long
it is: bytes left over or missing would be read as part of its neighbours. So two more fields follow each: a mark that is new
for every container, and the lane of its topic. Who finds the mark in every row has read every record exactly.

Avro 1.12 specification, "Object Container Files". May import the codec. Never: a value of a record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache

from schemas.codec import plain_schema
from schemas.events import RecordName

_MARK_BYTES = 16
_FRAME_BYTES = 5
_MAGIC = b"Obj\x01"


class Container:
    """Collects records; `parts()` is the file."""

    def __init__(self, name: RecordName) -> None:
        self.mark = os.urandom(_MARK_BYTES)
        self.count = 0
        self._head = _head(name)
        self._parts: list[bytes] = []

    def add(self, framed: Sequence[bytes], lane: str) -> None:
        """Add framed records of the codec's latest version, from a topic of this lane ('' for none)."""
        if framed:
            trailer = self.mark + _text(lane.encode())
            self._parts += (trailer.join(framed), trailer)
            self.count += len(framed)

    def parts(self) -> list[bytes]:
        """The file, in pieces."""
        sync = self.mark  # any 16 bytes
        size = sum(map(len, self._parts))
        return [self._head, sync, long_bytes(self.count), long_bytes(size), *self._parts, sync]


@cache
def _head(name: RecordName) -> bytes:
    schema = plain_schema(name)
    fields = [
        {"name": "frame", "type": {"type": "fixed", "name": "Frame", "size": _FRAME_BYTES}},
        *schema["fields"],
        {"name": "mark", "type": {"type": "fixed", "name": "Mark", "size": _MARK_BYTES}},
        {"name": "lane_of_topic", "type": "string"},
    ]
    entries = {"avro.schema": json.dumps({**schema, "fields": fields}).encode(), "avro.codec": b"null"}
    pairs = b"".join(_text(key.encode()) + _text(value) for key, value in entries.items())
    return _MAGIC + long_bytes(len(entries)) + pairs + long_bytes(0)


def long_bytes(value: int) -> bytes:
    """A number that is not negative, as Avro writes it."""
    left = value << 1
    out = bytearray()
    while left >= 128:
        out.append(left & 127 | 128)
        left >>= 7
    out.append(left)
    return bytes(out)


def _text(raw: bytes) -> bytes:
    return long_bytes(len(raw)) + raw
