"""Time as a value, of two kinds that are never mixed.

    Clock      when something happens: milliseconds since 1970, UTC. It may jump, forward and back.
    Monotonic  how long something takes, and timeouts: seconds from an arbitrary start, never back.

Code takes either as an argument, so that a test sets it; only this module reads the system's clocks.
May import the standard library. Never: sleeping.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns the wall-clock time in milliseconds since 1970, UTC."""

Monotonic = Callable[[], float]
"""Returns seconds that only ever go forward, from no particular moment on."""


def system_clock() -> int:
    """The system's time, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def system_monotonic() -> float:
    """The system's seconds since some moment of its own."""
    return time.monotonic()
