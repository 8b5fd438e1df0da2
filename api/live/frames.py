"""What every socket checks: where its page is from, and how fast its frames come.

May import the clock. Never: a frame's content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.clock import Monotonic, system_monotonic

AUTH_TIMEOUT_S = 5.0
FRAMES_PER_S = 20


class Allowance:
    """Frames that may come now: FRAMES_PER_S a second, and as many at once."""

    def __init__(self, monotonic: Monotonic = system_monotonic) -> None:
        self._monotonic = monotonic
        self._left, self._at = float(FRAMES_PER_S), monotonic()

    def take(self) -> bool:
        """Count a frame; False when it comes too soon."""
        now = self._monotonic()
        self._left = min(FRAMES_PER_S, self._left + (now - self._at) * FRAMES_PER_S) - 1
        self._at = now
        return self._left >= 0


def is_foreign(headers: Mapping[bytes, bytes], allowed: Sequence[str]) -> bool:
    """Whether a browser says that the page is of another site, which is not among the allowed ones."""
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    if not origin or origin in allowed:
        return False
    return origin.partition("://")[2] != headers.get(b"host", b"").decode("latin-1")
