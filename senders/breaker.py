"""The circuit breaker of one provider account; pure.

    closed ──(failures in a row)──► open ──(reset_s)──► half-open ──(one success)──► closed
                                     ▲                      │
                                     └──(PROBES failures)───┘

A failure counts only when nothing has succeeded since its request began: a few recipients that hang say nothing of an
account that serves the others meanwhile. Nothing is sent while it is open, and a message behind it uses no attempt.
May import settings. What never enters here: a provider, a message, waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Literal

from runtime.settings import BreakerSettings

State = Literal["closed", "half_open", "open"]
PROBES = 3
"""Requests in flight while half-open: a single one might be about a recipient that fails anyway."""


class Breaker:
    """Counts failures in a row; times are the clock's, in seconds."""

    def __init__(self, settings: BreakerSettings, clock: Callable[[], float] = monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._failures = 0
        self._succeeded_at = clock()
        self._failing_since: float | None = None
        self._opened_at: float | None = None

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return "closed"
        return "open" if self._clock() - self._opened_at < self._settings.reset_s else "half_open"

    def record(self, ok: bool, began: float) -> None:
        """What a request came to that began at `began`."""
        now = self._clock()
        if ok:
            self._failures, self._opened_at, self._failing_since = 0, None, None
            self._succeeded_at = now
            return
        if began < self._succeeded_at:
            return
        if self._failing_since is None:
            self._failing_since = now
        if self.state == "open":
            return
        self._failures += 1
        if self._failures >= (self._settings.failures if self._opened_at is None else PROBES):
            self._opened_at, self._failures = now, 0

    @property
    def given_up(self) -> bool:
        """Whether the account has not worked for so long that nobody should wait for it any more."""
        failing = self._opened_at is not None and self._failing_since is not None
        return failing and self._clock() - (self._failing_since or 0.0) >= self._settings.give_up_s
