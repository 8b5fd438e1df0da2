"""The circuit breaker of one provider account; pure.

    closed ──(failures in a row)──► open ──(reset_s)──► half-open ──(one success)──► closed
                                     ▲                      │
                                     └──────(a failure)─────┘

Nothing is sent while it is open, and nothing waits at a cost: a message behind it uses no attempt.
May import settings. What never enters here: a provider, a message, waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Literal

from runtime.settings import BreakerSettings

State = Literal["closed", "half_open", "open"]


class Breaker:
    """Counts failures in a row. One probe at a time decides what becomes of a half-open one."""

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._failures = 0
        self._failing_since: float | None = None
        self._opened_at: float | None = None

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return "closed"
        return "open" if self._clock() - self._opened_at < self._settings.reset_s else "half_open"

    def record(self, ok: bool) -> None:
        """What a request came to; one that began before the breaker opened counts as well."""
        if ok:
            self._failures, self._opened_at, self._failing_since = 0, None, None
            return
        now = self._clock()
        self._failures += 1
        if self._failing_since is None:
            self._failing_since = now
        if self.state == "half_open" or (self._opened_at is None and self._failures >= self._settings.failures):
            self._opened_at = now

    @property
    def given_up(self) -> bool:
        """Whether the account has not worked for so long that nobody should wait for it any more."""
        failing = self._opened_at is not None and self._failing_since is not None
        return failing and self._clock() - (self._failing_since or 0.0) >= self._settings.give_up_s
