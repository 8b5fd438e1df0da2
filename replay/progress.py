"""A replay as it is written down: who asked for what, and how far it is.

May import the standard library. Never: a store, a topic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay as it is written down; times in ms, 0 for none."""

    replay_id: str
    command: str
    topic: str
    filter: str
    tenant: str
    requested_by: str
    planned: int
    started_at: int
    from_at: int = 0
    to_at: int = 0
    published: int = 0
    gone: int = 0
    counts: str = "{}"
    state: str = "running"
    error: str = ""
    template: str = ""
    """ID:VERSION that its requests are rendered with, "" for their own."""
    note: str = ""
    """Why, in the words of who asked for it."""
    updated_at: int = 0
    finished_at: int = 0

    def moved(self, now: int, **changes: Any) -> Replay:
        """The same a moment later; its rows are ordered by that moment."""
        return replace(self, updated_at=max(now, self.updated_at + 1), **changes)
