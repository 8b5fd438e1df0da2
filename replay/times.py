"""Times as operators write them: RFC 3339 with an offset, or how long ago (`-90s`, `-30m`, `-2h`, `-7d`, `now`); pure.

May import the standard library. Never: a clock read, a time zone that nobody named.
"""

from __future__ import annotations

import re
from datetime import datetime

from runtime.errors import HeliographError

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AGO = re.compile(r"-(\d{1,6})([smhd])")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)", re.IGNORECASE)


class UsageError(HeliographError):
    """What the operator wrote cannot be used; the message says what can."""


def parse_time(text: str, now: int) -> int:
    """Milliseconds since 1970. Raises UsageError."""
    word = text.strip()
    if word == "now":
        return now
    if ago := _AGO.fullmatch(word):
        return max(0, now - int(ago[1]) * _UNITS_MS[ago[2]])
    if _RFC3339.fullmatch(word):
        try:
            return int(datetime.fromisoformat(word.upper()).timestamp() * 1000)
        except ValueError as exc:
            raise UsageError(f"{text!r} is not a time: {exc}") from exc
    raise UsageError(f"{text!r} is not a time: write 2026-03-01T12:00:00Z (RFC 3339, with an offset), -2h, -30m or now")
