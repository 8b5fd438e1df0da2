"""When an endpoint is asked again; pure.

    | what it answered                         | how long it, or the fact, waits                                       |
    |------------------------------------------|-----------------------------------------------------------------------|
    | any other refusal, no connection         | the schedule of the specification: 5 s, 5 min, 30 min, 2, 5 … 24 h    |
    | 429, 502, 503, 504 with Retry-After      | as long as it asks, up to an hour                                     |
    | the same without                         | 1 s doubled to 60 s; after seven in a row the schedule from 5 min on  |

Up to 10 % more, so that those who wait do not all come back at once.
May import runtime.retry. Never: a clock, an endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.retry import asked_s

_DOUBLED = 7
_JITTER = 0.1


def wait_s(schedule: Sequence[float], failures: int, jitter: float) -> float:
    """Seconds before the try that follows `failures` (from 1 on) failed ones; `jitter` in [0, 1)."""
    return schedule[min(max(1, failures), len(schedule) - 1)] * (1 + jitter * _JITTER)


def throttled_s(schedule: Sequence[float], failures: int, jitter: float, retry_after_s: float | None = None) -> float:
    """The same where it asked for fewer requests."""
    if retry_after_s is not None:
        return max(1.0, asked_s(retry_after_s)) * (1 + jitter * _JITTER)
    if failures <= _DOUBLED:
        return min(60.0, 2.0 ** max(0, failures - 1)) * (1 + jitter * _JITTER)
    return wait_s(schedule, failures - _DOUBLED + 1, jitter)


def is_last(schedule: Sequence[float], attempts: int) -> bool:
    """Whether no try follows this many failed ones of a single fact."""
    return attempts >= len(schedule)
