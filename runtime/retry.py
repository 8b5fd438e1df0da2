"""The retry law: delays of 1, 2, 4, 8, 16 … 60 s with jitter, a provider's Retry-After honoured and clamped; pure.

May import the standard library. What never enters here: sleeping, a timer, a count kept in memory.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_DELAY_S = 60.0
MAX_RETRY_AFTER_S = 3_600.0
"""A provider may ask for an hour at most; more is an account problem, not a wait."""


def retry_delay_s(retries: int, jitter: float, retry_after_s: float | None = None) -> float:
    """Seconds before the next attempt: [0.5, 1] × min(60, 2^retries), never less than the provider asked for.

    `jitter` lies in [0, 1). The asked-for time gets up to 10 % on top, so that waiters do not come back as one.
    """
    backoff = (0.5 + jitter / 2) * min(MAX_DELAY_S, 2.0 ** max(0, retries))
    if retry_after_s is None:
        return backoff
    asked = min(MAX_RETRY_AFTER_S, max(0.0, retry_after_s))
    return max(backoff, asked * (1 + jitter / 10))


def parse_retry_after(value: str | None, now_ms: int) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110 §10.2.3: seconds or a date); None when it says nothing usable."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:12]), 10**9))
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.fromtimestamp(now_ms / 1000, UTC)).total_seconds())
