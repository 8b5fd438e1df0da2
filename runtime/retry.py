"""The retry law: delays of 1, 2, 4, 8, 16 … 60 s with jitter, a provider's Retry-After honoured and clamped; pure.

Every function is total: a provider, or whoever wrote the record, chooses what comes in.

May import the standard library. Never: sleeping, a timer, a count kept in memory.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_DELAY_S = 60.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_RETRY_AFTER_S = 3_600.0
"""A provider may ask for an hour at most; more is an account problem, not a wait."""


def retry_delay_s(retries: int, jitter: float, retry_after_s: float | None = None) -> float:
    """Seconds before the next attempt: [0.5, 1] × min(60, 2^retries), never less than the provider asked for.

    `jitter` is in [0, 1). The asked-for time gets up to 10 % on top, so that waiters do not all come back at once.
    """
    backoff = (0.5 + jitter / 2) * _doubled_s(retries)
    return backoff if retry_after_s is None else max(backoff, asked_s(retry_after_s) * (1 + jitter / 10))


def throttle_delay_s(attempt: int, jitter: float, retry_after_s: float | None = None) -> float:
    """Seconds before the attempt that follows `attempt` (from 1 on), which used no retry up.

    [1, 1.1] × min(60, 2^(attempt − 1)), never less than the provider asked for: what costs nothing may not come soon.
    """
    return max(_doubled_s(attempt - 1), asked_s(retry_after_s or 0.0)) * (1 + jitter / 10)


def asked_s(seconds: float) -> float:
    """The wait a provider asked for, in [0, MAX_RETRY_AFTER_S]; 0 for a text that is not a number."""
    return min(MAX_RETRY_AFTER_S, seconds) if seconds > 0 else 0.0


def _doubled_s(times: int) -> float:
    return min(MAX_DELAY_S, 2.0 ** min(max(0, times), 10))


def parse_retry_after(value: str | None, now_ms: int) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110 §10.2.3: seconds or a date); None when it says nothing usable."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:12]), 10**9))
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - _EPOCH).total_seconds() - now_ms / 1000)
