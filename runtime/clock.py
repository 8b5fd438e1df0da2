"""Time as a value: whoever needs the time takes a Clock, whoever measures how long something takes takes Ticks.

May import the standard library. Never: sleeping.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns the wall-clock time in milliseconds since the epoch, UTC."""

Ticks = Callable[[], float]
"""Returns seconds that only ever go forward, from no particular moment on."""


def system_clock() -> int:
    """The system's time."""
    return time.time_ns() // 1_000_000


def system_ticks() -> float:
    """The system's."""
    return time.monotonic()
