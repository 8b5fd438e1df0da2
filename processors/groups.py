"""Consumer groups of the processors; an engine change keeps the group and so its offsets.

May import nothing. Never: a client.
"""

from __future__ import annotations

TIMERS_GROUP = "heliograph-timers"


def router_group(lane: str) -> str:
    """The group of a lane's router, under either engine."""
    return f"heliograph-router-{lane}"
