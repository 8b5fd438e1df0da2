"""Limits of one provider account: messages in flight and a token bucket.

May import asyncio. What never enters here: a provider, a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic


class TokenBucket:
    """`rate` requests a second on average, a tenth of a second's worth (at least one) at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = monotonic) -> None:
        self._interval, self._clock = 1.0 / rate, clock
        self._burst_s = max(0.1, self._interval)
        self._next = clock()

    def reserve(self) -> float:
        """Take one token; returns the seconds to wait before it may be used."""
        now = self._clock()
        self._next = max(self._next, now - self._burst_s + self._interval)
        wait = self._next - now
        self._next += self._interval
        return max(0.0, wait)


class AccountLimits:
    """`async with limits:` around one provider request."""

    def __init__(self, max_in_flight: int, rate_per_second: float | None) -> None:
        self._slots = asyncio.Semaphore(max_in_flight)
        self._bucket = TokenBucket(rate_per_second) if rate_per_second else None

    async def __aenter__(self) -> None:
        await self._slots.acquire()
        if self._bucket and (wait := self._bucket.reserve()):
            await asyncio.sleep(wait)

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()
