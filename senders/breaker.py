"""The circuit breaker of one provider account; pure.

    closed ──(failures in a row)──► open ──(reset_s)──► half-open ──(one success)──► closed
                                     ▲                      │
                                     └──(PROBES failures)───┘

A failure counts only if no request has succeeded since its own began: a few recipients that time out prove nothing about an
account that serves others at the same time. Where traffic is thin, FEW_FAILURES that last for LASTING_S are enough: a lone
message would use its retries up before there were more. Nothing is sent while it is open, and a message behind it uses no attempt.

An account is given up while it is open and has failed for `give_up_s` without a break: every probe of that time failed. Time
alone proves nothing. Half-open, the next request may succeed, so the account is not given up before it; a message that was the
probe has seen it fail. After an idle hour without a request, the next failure starts a new period of failing; meanwhile nobody
waits, and nothing is known to be wrong.
May import settings. Never: a provider, a message, waiting.
"""

from __future__ import annotations

from typing import Literal

from runtime.clock import Monotonic, system_monotonic
from runtime.settings import BreakerSettings

State = Literal["closed", "half_open", "open"]
PROBES = 3
"""Requests in flight while half-open: a single one might be about a recipient that fails anyway."""
FEW_FAILURES = 4
LASTING_S = 5.0
"""A message's own retries fail for the fourth time after 3.5 to 7 s, for the fifth after 7.5 to 15 s (runtime/retry.py)."""
SLACK_S = 10.0
"""While messages wait, a probe starts every reset_s. Failures further apart than twice that plus this belong to two
periods of failing: no request was made in between."""
LONGEST_REQUEST_S = 300.0
"""What `timeout_s` of an account allows. A request that seems to have taken longer was made by a process that stood still:
no evidence of that time."""


class Breaker:
    """Counts failures in a row; times are those of `monotonic`, in seconds."""

    def __init__(self, settings: BreakerSettings, monotonic: Monotonic = system_monotonic) -> None:
        self._settings, self._monotonic = settings, monotonic
        self._failures = 0
        self._first_failed_at = 0.0
        self._succeeded_at = monotonic()
        self._failed_at: float | None = None
        self._failing_since = 0.0
        self._opened_at: float | None = None

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return "closed"
        return "open" if self._monotonic() - self._opened_at < self._settings.reset_s else "half_open"

    def record(self, ok: bool, began: float) -> None:
        """Record the result of a request that began at `began`."""
        now = self._monotonic()
        if ok:
            self._failures, self._opened_at, self._failed_at = 0, None, None
            self._succeeded_at = now
            return
        if began < self._succeeded_at:
            return
        if self._is_idle(max(min(began, now), now - LONGEST_REQUEST_S)):
            self._failing_since = now
        self._failed_at = now
        if self.state == "open":
            return
        if not self._failures:
            self._first_failed_at = now
        self._failures += 1
        if self._opens(now):
            self._opened_at, self._failures = now, 0

    def _opens(self, now: float) -> bool:
        if self._opened_at is not None:
            return self._failures >= PROBES
        lasting = self._failures >= FEW_FAILURES and now - self._first_failed_at >= LASTING_S
        return lasting or self._failures >= self._settings.failures

    def _is_idle(self, at: float) -> bool:
        """Whether no request has failed for so long that, by then, none is being made."""
        return self._failed_at is None or at - self._failed_at > 2 * self._settings.reset_s + SLACK_S

    @property
    def failing_for_s(self) -> float | None:
        """How long it has been failing without a break; None while it is closed, and once nobody asks for it any more."""
        now = self._monotonic()
        if self._opened_at is None or self._is_idle(now):
            return None
        return max(0.0, now - self._failing_since)

    @property
    def next_probe_in_s(self) -> float | None:
        """Seconds until a probe may begin, None while it is closed."""
        if self._opened_at is None:
            return None
        return max(0.0, self._opened_at + self._settings.reset_s - self._monotonic())

    def given_up(self, *, probed: bool = False) -> bool:
        """Whether the account has been failing for so long that no message should wait for it any more.

        `probed`: of a message whose own request has just failed; to others a half-open account may still answer.
        """
        failing_for_s = self.failing_for_s
        if failing_for_s is None or (self.state != "open" and not probed):
            return False
        return failing_for_s >= self._settings.give_up_s
