"""A place in the status topic, as the id of a live event: every process resumes it, none has to remember it.

    1-<base64url of varints: the number of partitions, then the next offset of each>

Opaque to callers. It names offsets and nothing else: the tenant's filter applies after it as before.
May import the standard library. Never: a consumer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

_VERSION = "1-"
MAX_PARTITIONS = 1_000
MAX_CHARS = 16_000
_MAX_OFFSET = 1 << 62

Place = tuple[int, ...]
"""The next offset of each partition, 0 to n - 1."""


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def write_place(offsets: Sequence[int]) -> str:
    """The place as text."""
    raw = b"".join(map(_varint, (len(offsets), *offsets)))
    return _VERSION + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_place(text: str) -> Place | None:
    """The place; None for what `write_place` never wrote."""
    if not text.startswith(_VERSION) or len(text) > MAX_CHARS:
        return None
    text = text.removeprefix(_VERSION)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None
    numbers = list[int]()
    number = shift = 0
    for byte in raw:
        number |= (byte & 127) << shift
        if byte > 127:
            shift += 7
            if shift > 63:
                return None
        else:
            numbers.append(number)
            number = shift = 0
    if shift or not numbers or not 0 < numbers[0] <= MAX_PARTITIONS or len(numbers) != numbers[0] + 1:
        return None
    found = tuple(numbers[1:])
    return found if max(found) < _MAX_OFFSET else None
