"""Who watches what, and what they have yet to be sent. Bounded per watcher: a reader that is slow loses order, never memory.

    watcher of notifications   up to 64 frames; beyond, one snapshot of each once the reader goes on
    watcher of a tenant        up to 1,000 frames; beyond, the oldest are dropped, and a gap says how many

May import tracking.status. Never: a consumer, a frame of a protocol.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from runtime.metrics import LIVE_DELAY_SECONDS
from schemas.events import states
from tracking.live.facts import Fact
from tracking.live.places import Place
from tracking.status import Event, accepted_at_of, event_entry, rollup

MAX_FRAMES = 64
MAX_WIDE_FRAMES = 1_000
MAX_FACTS = 5_000
"""Held of one notification; a snapshot of more is not complete."""
END_ID = "end"
"""The id of an end that is final: who reconnects with it is sent nothing."""


class Frame:
    """One message to a watcher: what kind, at which place, and its data as JSON. Shared between watchers."""

    __slots__ = ("data", "kind", "offset", "partition", "place", "timestamp", "wire")

    def __init__(self, kind: str, data: str, place: str | None = None, fact: Fact | None = None) -> None:
        self.kind, self.data, self.place = kind, data, place
        self.timestamp, self.partition, self.offset = (
            (fact.timestamp, fact.partition, fact.offset) if fact is not None else (0, 0, 0)
        )
        self.wire: bytes | None = None
        """For the protocol that most watchers use, once it was encoded."""

    def observe_delay(self, now: int) -> None:
        """It is written at `now`, in ms since 1970: how long after the broker had its fact, if it is one."""
        if self.timestamp:
            LIVE_DELAY_SECONDS.observe(max(0, now - self.timestamp) / 1_000)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def status_frame(fact: Fact, current: Mapping[str, Any]) -> Frame:
    """A fact, and where its notification is with it."""
    data = {
        "event": event_entry(fact.event),
        "notification": {name: current[name] for name in ("id", "status", "reason")},
        "settled": current["status"] in states().settled,
    }
    return Frame("status", _json(data), fact.place, fact)


def reset_frame(reason: str, place: str) -> Frame:
    """The place that was asked for cannot be resumed: what follows starts anew, at this one."""
    return Frame("reset", _json({"reason": reason}), place)


def end_frame(reason: str, place: str) -> Frame:
    """The last one of a stream."""
    return Frame("end", _json({"reason": reason}), place)


class Watched:
    """A notification that is watched: the facts about it, shared by all who watch it."""

    __slots__ = ("accepted", "complete", "facts", "held_from", "id", "loaded", "tenant", "truncated", "watchers")

    def __init__(self, tenant: str, notification_id: str) -> None:
        self.tenant, self.id = tenant, notification_id
        self.facts: dict[str, Event] = {}
        self.watchers: list[NotificationWatcher] = []
        self.complete = False
        self.accepted = False
        """Whether it is known to exist although there may be no fact yet."""
        self.loaded = False
        self.truncated = False
        """There are more facts than are held: it is never complete."""
        self.held_from: Place = ()
        """Every fact from here on is held."""

    def add(self, event: Event) -> bool:
        """False when it is known already."""
        if event["event_id"] in self.facts:
            return False
        if len(self.facts) >= MAX_FACTS:
            self.truncated, self.complete = True, False
            return False
        self.facts[event["event_id"]] = event
        return True

    def current(self) -> dict[str, Any]:
        """The notification as GET shows it, out of the facts held."""
        return rollup(self.id, accepted_at_of(UUID(self.id)), list(self.facts.values()))

    @property
    def settled(self) -> bool:
        """Whether it is settled for all that is known, and all is known."""
        return self.complete and self.current()["status"] in states().settled

    def snapshot(self, place: str) -> Frame:
        """The notification and its facts, in the order of GET /events."""
        events = sorted(self.facts.values(), key=lambda e: (e["occurred_at"], e["rank"], e["event_id"]))
        known = self.accepted or bool(events)
        data = {
            "notification": self.current() if known else None,
            "events": [event_entry(event) for event in events],
            "complete": self.complete,
        }
        return Frame("snapshot", _json(data), place)


class Watcher:
    """One stream. `wake` is called when there is something to take; it may be called again before that."""

    __slots__ = ("ended", "ends_at", "key_id", "tenant", "wake", "writing_since", "written_at")

    def __init__(self, tenant: str, key_id: str, wake: Callable[[], None], ends_at: float, now: float) -> None:
        self.tenant, self.key_id, self.wake = tenant, key_id, wake
        self.ends_at = ends_at
        self.written_at = now
        self.writing_since: float | None = None
        self.ended: Frame | None = None

    def end(self, reason: str, place: str) -> None:
        """Say why, as the last thing."""
        if self.ended is None:
            self.ended = end_frame(reason, place)
            self.wake()

    def take(self) -> list[Frame]:
        """What is to be sent now; [] for nothing. An end is the last of it."""
        raise NotImplementedError


class NotificationWatcher(Watcher):
    """A watcher of up to 100 notifications."""

    __slots__ = ("_changed", "_frames", "_place", "keys", "until_settled", "watched")

    def __init__(
        self,
        tenant: str,
        key_id: str,
        wake: Callable[[], None],
        ends_at: float,
        now: float,
        *,
        place: Callable[[], str],
        until_settled: bool,
    ) -> None:
        super().__init__(tenant, key_id, wake, ends_at, now)
        self._place = place
        self.until_settled = until_settled
        self.watched: tuple[Watched, ...] = ()
        self.keys: list[tuple[str, str]] = []
        """(tenant, id) of those it is registered for."""
        self._frames: list[Frame] = []
        self._changed: set[Watched] = set()

    def push(self, frame: Frame, watched: Watched) -> int:
        """Frames that were dropped for it."""
        dropped = 0
        if len(self._frames) >= MAX_FRAMES:
            dropped = len(self._frames) + 1
            self._frames.clear()
            self._changed.update(self.watched)
        elif watched not in self._changed:  # else the snapshot that it is due has this, too
            self._frames.append(frame)
        self._end_if_settled()
        self.wake()
        return dropped

    def begin(self, watched: Sequence[Watched]) -> None:
        """All of them are loaded: a snapshot of each is the first that it is sent."""
        self.watched = tuple(watched)
        self._frames.clear()
        self._changed.update(self.watched)
        self._end_if_settled()
        self.wake()

    def refresh(self, watched: Watched) -> None:
        """What it was told of this notification is not all: tell it again, whole."""
        self._changed.add(watched)
        self._end_if_settled()
        self.wake()

    def _end_if_settled(self) -> None:
        if self.until_settled and self.watched and all(watched.settled for watched in self.watched):
            self.end("settled", END_ID)

    def take(self) -> list[Frame]:
        """See Watcher."""
        frames, self._frames = self._frames, []
        if self._changed:
            changed, self._changed = self._changed, set()
            place = self._place()
            frames += [watched.snapshot(place) for watched in self.watched if watched in changed]
        if self.ended is not None:
            frames.append(self.ended)
        return frames


@dataclass(frozen=True, slots=True)
class Filters:
    """What of a tenant is watched; '' is any. Each is a field of a fact."""

    state: str = ""
    channel: str = ""
    lane: str = ""
    template_id: str = ""
    provider: str = ""
    user_id: str = ""
    correlation_id: str = ""

    def match(self, fact: Fact) -> bool:
        """Whether the fact is wanted."""
        event = fact.event
        return (
            (not self.state or event["state"] == self.state)
            and (not self.channel or event["channel"] == self.channel)
            and (not self.lane or event["lane"] == self.lane)
            and (not self.template_id or event["template_id"] == self.template_id)
            and (not self.provider or event["provider"] == self.provider)
            and (not self.user_id or fact.recipient == self.user_id)
            and (not self.correlation_id or event["correlation_id"] == self.correlation_id)
        )


class TenantWatcher(Watcher):
    """A watcher of what happens to all of a tenant's notifications that its filters let through."""

    __slots__ = ("_frames", "_missed", "counted", "filters", "resumed_to", "resuming")

    def __init__(
        self,
        tenant: str,
        key_id: str,
        wake: Callable[[], None],
        ends_at: float,
        now: float,
        filters: Filters,
        counted: str,
    ) -> None:
        super().__init__(tenant, key_id, wake, ends_at, now)
        self.filters = filters
        self.counted = counted
        """Whose streams it is counted among."""
        self.resumed_to: list[int] = []
        """Per partition, the offset below which it was sent all, or had it before."""
        self.resuming = False
        """While it is sent what it missed: what is new waits."""
        self._frames: deque[Frame] = deque()
        self._missed = 0

    def push(self, frame: Frame) -> int:
        """Frames that were dropped for it."""
        dropped = 0
        if len(self._frames) >= MAX_WIDE_FRAMES:
            self._frames.popleft()
            self._missed += 1
            dropped = 1
        self._frames.append(frame)
        self.wake()
        return dropped

    def take(self) -> list[Frame]:
        """See Watcher."""
        if self.resuming:
            return []
        frames = list(self._frames)
        self._frames.clear()
        if self.resumed_to:
            frames = [frame for frame in frames if frame.offset >= self.resumed_to[frame.partition]]
        if self._missed:
            # Before what is left: these were older.
            frames.insert(0, Frame("gap", _json({"missed": self._missed})))
            self._missed = 0
        if self.ended is not None:
            frames.append(self.ended)
        return frames
