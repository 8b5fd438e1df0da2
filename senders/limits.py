"""The token bucket of one provider account; pure.

May import the standard library. What never enters here: waiting, a provider, a message.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic


class TokenBucket:
    """`rate` requests a second on average, a tenth of a second's worth (at least one) at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._next = clock()
        self.set_rate(rate)

    def set_rate(self, rate: float) -> None:
        """Change the rate; what was taken stays taken."""
        self._interval = 1.0 / rate
        self._burst_s = max(0.1, self._interval)

    def ready(self) -> bool:
        """Whether a token may be taken now."""
        return self._next <= self._clock() + self._burst_s - self._interval + 1e-9

    def take(self) -> None:
        """Take one token; ask `ready` first."""
        self._next = max(self._next, self._clock()) + self._interval
