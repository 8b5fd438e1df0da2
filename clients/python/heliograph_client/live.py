"""Where a stream of live status is, and what of it is new: both clients feed it, through every connection.

May import the standard library and types. Never: a connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from heliograph_client.calls import MAX_IDS, HeliographError

PATH = "/v1/stream"
SILENCE_S = 45.0
"""The API says something every 15 s."""
BACK_AFTER_S = 1.0
"""A stream that ended and is not over is begun again so much later."""
FINAL = "end"
"""The id of an event that nothing follows."""
MAX_EVENT_BYTES = 64 << 20
"""A snapshot has all facts of a notification."""


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """`kind` is snapshot, status, gap, reset or end; `data` as docs/live.md says; `id` is the place after it."""

    kind: str
    id: str
    data: dict[str, Any]


class Place:
    """Joins connections to one stream: it goes on behind the last event, and a fact that was told is not told again."""

    def __init__(self, ids: Sequence[str], until_settled: bool, filters: Mapping[str, str], after: str | None) -> None:
        if len(ids) > MAX_IDS:
            raise HeliographError(f"at most {MAX_IDS} notifications in one stream")
        self._query = [("notification_id", one) for one in ids]
        self._query += [("until", "settled")] * bool(ids and until_settled)
        self._query += sorted(filters.items())
        self._of_ids = bool(ids)
        self.last = after
        self._told = set[str]()
        self.over = False

    @property
    def query(self) -> str:
        """Of the next connection."""
        return urlencode(self._query)

    @property
    def headers(self) -> dict[str, str]:
        """Of the next connection."""
        return {"Accept": "text/event-stream", **({"Last-Event-ID": self.last} if self.last else {})}

    def take(self, kind: str, place: str, data: str) -> LiveEvent | None:
        """The event, where it is to be shown; None for a mere place, and for a fact that was told."""
        self.last = place or self.last
        if kind == "message":
            return None
        event = LiveEvent(kind, place, json.loads(data))
        if kind == "end":
            # Others, `restart` and `reconnect`, say to come back.
            self.over = place == FINAL
            return event if self.over else None
        if self._of_ids and kind == "snapshot":
            self._told.update(fact["id"] for fact in event.data["events"])
        elif self._of_ids and kind == "status":
            fact = event.data["event"]["id"]
            if fact in self._told:
                return None
            self._told.add(fact)
        return event
