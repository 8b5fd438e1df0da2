"""Retry-After of a 503: it grows with the outage, so that the callers of a long one do not come back every second; pure but for its clock.

May import runtime.clock. Never: what is away.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.clock import Monotonic, system_monotonic

LONGEST_S = 30
"""Asked of a caller at most: when the outage is over, nobody waits for longer."""
_SHARE = 10
"""A caller is asked to wait a tenth of what the outage has lasted."""
_QUIET_S = 2.0 * LONGEST_S
"""Without a failure for so long an outage is over, whether or not anything succeeded since."""


@dataclass(slots=True)
class _Outage:
    began: float
    last: float


class Outages:
    """What does not answer, by the code of its problem, and since when."""

    def __init__(self, monotonic: Monotonic = system_monotonic) -> None:
        self._monotonic = monotonic
        self._outages: dict[str, _Outage] = {}

    def retry_after_s(self, code: str) -> int:
        """Count a failure; the seconds to ask for."""
        now = self._monotonic()
        outage = self._outages.get(code)
        if outage is None or now - outage.last > _QUIET_S:
            outage = self._outages[code] = _Outage(now, now)
        outage.last = now
        return max(1, min(LONGEST_S, int((now - outage.began) / _SHARE)))

    def over(self, code: str) -> None:
        """Something succeeded that would not have during the outage."""
        if self._outages:
            self._outages.pop(code, None)
