"""The subscriptions: what live status sends, one event at a time.

    frame of the hub          here
    snapshot                  its facts, each as an event: those that were sent before are left out
    status                    an event
    gap, reset, end           an error with the code events_missed, reset or the reason of the end; after an end it is complete

An error is a result without data: the subscription goes on after `events_missed` and `reset`.
May import strawberry and tracking.live. Never: a connection.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import strawberry

from api.graphql.context import Context
from api.graphql.notifications import Event, Notification, event_of, noted
from api.graphql.reference import Info
from api.graphql.scalars import Channel
from api.live.access import Access
from api.live.wanted import Wanted, wanted, watch
from runtime.clock import system_clock, system_monotonic
from runtime.errors import Refusal, RefusedError
from schemas.events import states
from tracking.live.hub import Stream
from tracking.live.watchers import Frame

_ENDS: Mapping[str, tuple[Refusal, str]] = {
    "restart": (Refusal.BUSY, "this process restarts: subscribe again, after the last cursor"),
    "reconnect": (Refusal.BUSY, "a subscription lasts a quarter of an hour: subscribe again, after the last cursor"),
    "revoked": (Refusal.UNKNOWN, "the API key is revoked"),
    "not_found": (Refusal.UNKNOWN, "there is no such notification"),
}


@strawberry.type(description="A fact as it is published, and where its notification is with it.")
class StatusEvent:
    cursor: str = strawberry.field(description="A place in the topic, for `after`: any process resumes it.")
    event: Event
    notification: Notification
    settled: bool


@strawberry.input(description="Facts that have all of these.")
class EventFilter:
    state: str | None = None
    channel: Channel | None = None
    lane: str | None = None
    template: strawberry.ID | None = None
    provider: str | None = None
    user: strawberry.ID | None = None
    correlation_id: str | None = None

    def given(self) -> dict[str, list[str]]:
        """As the stream's query has it."""
        named = {
            "state": self.state,
            "channel": self.channel.value if self.channel is not None else None,
            "lane": self.lane,
            "template_id": self.template,
            "provider": self.provider,
            "user_id": self.user,
            "correlation_id": self.correlation_id,
        }
        return {name: [value] for name, value in named.items() if value is not None}


class _Subscription(Stream):
    """A watcher of the hub, drawn from by an operation."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.ready = asyncio.Event()

    def wake(self) -> None:
        """See Stream."""
        self.ready.set()

    def keep_alive(self, place: str) -> None:
        """See Stream: the connection does it."""

    def cut(self) -> None:
        """See Stream."""
        self._context.cut()


Item = StatusEvent | RefusedError


async def _follow(context: Context, asked: Wanted, after: str | None) -> AsyncGenerator[Item, None]:
    """Raises RefusedError and UnavailableError before the first."""
    stream = _Subscription(context)
    access = Access(context.tenant, context.caller.key_id)
    with context.services.subscriptions.one():
        watcher, first = await watch(context.services.hub, stream, asked, access, after)
        # Those of a tenant come once: the hub sees to it.
        known = set[str]() if asked.ids else None
        frames: Sequence[Frame] = first
        try:
            while True:
                for frame in frames:
                    frame.observe_delay(system_clock())
                    for item in items_of(frame, known, context):
                        watcher.writing_since = system_monotonic()
                        yield item
                        watcher.writing_since, watcher.written_at = None, system_monotonic()
                    if frame is watcher.ended:
                        return
                stream.ready.clear()
                frames = watcher.take()
                if not frames:
                    await stream.ready.wait()
        finally:
            context.services.hub.leave(watcher)


def items_of(frame: Frame, known: set[str] | None, context: Context) -> list[Item]:
    """What is said of a frame; facts in `known` are left out, and those that are said are added to it."""
    if not frame.kind:
        return []
    data = json.loads(frame.data)
    if frame.kind == "status":
        if frame.place is None or (known is not None and data["event"]["id"] in known):
            return []
        return [_status_event(frame.place, data["event"], data["notification"], context, known)]
    if frame.kind == "snapshot":
        current, place = data["notification"], frame.place or ""
        new = [event for event in data["events"] if known is None or event["id"] not in known]
        return [_status_event(place, event, current, context, known) for event in new]
    if frame.kind == "gap":
        missed = data["missed"]
        why = f"{missed} events were not sent: what is sent is read too slowly"
        return [RefusedError(Refusal.TOO_MANY, "events_missed", why, extra={"missed": missed})]
    if frame.kind == "reset":
        why = "the place cannot be resumed: what follows begins now"
        return [RefusedError(Refusal.CONFLICT, "reset", why, extra={"reason": data["reason"], "cursor": frame.place})]
    kind, why = _ENDS[data["reason"]]
    return [RefusedError(kind, data["reason"], why, extra={"cursor": frame.place})]


def _status_event(
    place: str, event: Mapping[str, Any], current: Mapping[str, Any], context: Context, known: set[str] | None
) -> StatusEvent:
    if known is not None:
        known.add(event["id"])
    # Loaders of its own: the next event asks again.
    notification = noted(current["id"], current, context.new_loaders(), context)
    settled = current["status"] in states().settled
    return StatusEvent(cursor=place, event=event_of(event), notification=notification, settled=settled)


@strawberry.type
class Subscription:
    @strawberry.subscription(  # type: ignore[untyped-decorator]
        description="What happened to a notification, and what happens to it. After a reconnect its facts are sent again: their ids say which."
    )
    async def notification_changed(
        self, info: Info, id: strawberry.ID, after: str | None = None
    ) -> AsyncIterator[StatusEvent]:
        """Facts of one."""
        asked = wanted({"notification_id": [id]}, Access(info.context.tenant, info.context.caller.key_id))
        async with aclosing(_follow(info.context, asked, after)) as items:
            async for item in items:
                yield item  # type: ignore[misc]  # graphql-core raises an exception that is yielded, and goes on

    @strawberry.subscription(  # type: ignore[untyped-decorator]
        description="What happens to the tenant's notifications from now on, or since a cursor, as far as it can be resumed."
    )
    async def status_events(
        self, info: Info, filter: EventFilter, after: str | None = None
    ) -> AsyncIterator[StatusEvent]:
        """Facts of the tenant."""
        asked = wanted(filter.given(), Access(info.context.tenant, info.context.caller.key_id))
        async with aclosing(_follow(info.context, asked, after)) as items:
            async for item in items:
                yield item  # type: ignore[misc]
