"""What every store and key agrees on about a record: the form of its tenant, the hour it is kept under; pure.

May import the standard library. Never: an id (runtime/ids.py), a clock read.
"""

from __future__ import annotations

import re

HOUR_S = 3_600
LAST_HOUR_S = 2**32 - HOUR_S
"""The last hour (s since 1970) that ClickHouse's DateTime can say."""
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_tenant(tenant: str) -> str:
    """A tenant's name. Raises ValueError: it is the first part of every key, so it has no colon."""
    if not TENANT.fullmatch(tenant):
        raise ValueError("a tenant has 1 to 63 letters, digits, dots, hyphens and underscores")
    return tenant


def hour_of(accepted_at_ms: int) -> int:
    """The hour (s since 1970) under which ClickHouse keeps a notification that was accepted then (ms since 1970)."""
    return accepted_at_ms // 1_000 // HOUR_S * HOUR_S
