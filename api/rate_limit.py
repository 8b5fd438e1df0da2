"""How often one API key may call: a token bucket per key, in this process.

May import the standard library and the clock. Never: whose key it is, an answer over HTTP.
"""

from __future__ import annotations

from collections import OrderedDict

from runtime.clock import Monotonic, system_monotonic

MAX_BUCKETS = 10_000


class RateLimiter:
    """`rate_per_s` calls a second, and up to `burst` at once after a pause."""

    def __init__(self, rate_per_s: float, burst: float | None = None, monotonic: Monotonic = system_monotonic) -> None:
        self._rate = rate_per_s
        self._monotonic = monotonic
        self._burst = max(1.0, rate_per_s * 2 if burst is None else burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def _tokens(self, key: str, now: float) -> float:
        tokens, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._rate)

    def take(self, key: str) -> float:
        """0 when the key may call now, else the seconds until it may."""
        now = self._monotonic()
        tokens = self._tokens(key, now)
        if tokens < 1:
            return (1 - tokens) / self._rate
        self._put(key, tokens - 1, now)
        return 0.0

    def charge(self, key: str, calls: int) -> None:
        """Count what a call turned out to hold; a debt is paid before the next call."""
        now = self._monotonic()
        # At most ten seconds of debt: one large call must not shut a caller out for long.
        self._put(key, max(self._tokens(key, now) - calls, -10 * self._rate), now)

    def _put(self, key: str, tokens: float, now: float) -> None:
        self._buckets[key] = (tokens, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
