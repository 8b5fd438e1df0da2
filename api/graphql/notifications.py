"""Notifications, their messages and events as GraphQL shows them: what REST's status, events and explain say.

May import strawberry, the loaders and tracking. Never: a question to a store, a rule about states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from api.graphql.connections import check_first
from api.graphql.context import Context
from api.graphql.loaders import Loaders
from api.graphql.reference import Info, TemplateVersion, User, user_of, version_of
from api.graphql.scalars import Channel, DateTime, State, channel_of, documented
from runtime.status import rfc3339
from tracking.explain import gather_facts
from tracking.status import Event as Fact
from tracking.status import Found, accepted_at_of, event_entry, rollup
from tracking.story import explain_facts

Row = Mapping[str, Any]
MAX_EVENTS = 200


@strawberry.type(description="One fact about a notification.")
class Event:
    id: strawberry.ID
    message_id: strawberry.ID | None
    channel: Channel | None
    lane: str
    state: str
    reason: str | None
    detail: str | None
    attempt: int
    provider: str | None
    provider_message_id: str | None
    possible_duplicate: bool
    template_id: strawberry.ID | None
    template_version: int | None
    preference_version: int | None
    occurred_at: DateTime
    latency_ms: int | None
    correlation_id: str | None


def event_of(entry: Row) -> Event:
    """An event out of an entry of REST's /events."""
    return Event(**{**entry, "channel": channel_of(entry["channel"])})


@strawberry.type(description="The result of one attempt to send a message.")
class Attempt:
    attempt: int
    provider: str | None
    state: str
    reason: str | None
    occurred_at: DateTime


@strawberry.type(description="A message: a notification on one channel to one address.")
class Message:
    id: strawberry.ID
    notification: Notification
    channel: Channel | None
    state: State
    reason: str | None
    provider: str | None
    provider_message_id: str | None
    possible_duplicate: bool
    attempts: list[Attempt]

    @documented
    async def why(self) -> str:
        """The state and its reason in words, or what it waits for."""
        story = await self.notification.loaders.stories.load(self.notification.uuid)
        found: str = next(one["why"] for one in story["messages"] if one["id"] == self.id)
        return found


def _message(notification: Notification, shown: Row) -> Message:
    return Message(
        id=strawberry.ID(shown["id"]),
        notification=notification,
        channel=channel_of(shown["channel"]),
        state=State(shown["status"]),
        attempts=[Attempt(**attempt) for attempt in shown["attempts"]],
        **{name: shown[name] for name in ("reason", "provider", "provider_message_id", "possible_duplicate")},
    )


@strawberry.type(description="A notification: what was asked for, and what became of it.")
class Notification:
    """`request` is its row of requests_of.sql where a list brought it, `accepted_lane` what this process knows at once."""

    id: strawberry.ID
    state: State
    reason: str | None
    loaders: strawberry.Private[Loaders]
    request: strawberry.Private[Row | None] = None
    accepted_lane: strawberry.Private[str | None] = None

    @property
    def uuid(self) -> UUID:
        """Its id."""
        return UUID(self.id)

    async def asked_for(self) -> Row | None:
        """Its request; None for about a second, until analytics have it."""
        return self.request or await self.loaders.requests.load(self.uuid)

    async def _shown(self) -> dict[str, Any]:
        return rollup(self.id, accepted_at_of(self.uuid), await self.loaders.events.load(self.uuid))

    @documented
    def accepted_at(self) -> DateTime:
        """When every in-sync replica had it."""
        return DateTime(rfc3339(accepted_at_of(self.uuid)))

    @documented
    async def why(self) -> str:
        """The state and its reason in words, or what it waits for."""
        found: str = (await self.loaders.stories.load(self.uuid))["why"]
        return found

    @documented
    async def lane(self) -> str | None:
        """Its priority: critical, normal or bulk; null for about a second, until analytics have the request."""
        request = await self.asked_for()
        return request["lane"] if request is not None else self.accepted_lane

    @documented
    async def category(self) -> str | None:
        """Null for about a second, until analytics have the request."""
        request = await self.asked_for()
        return request["category"] if request is not None else None

    @documented
    async def tags(self) -> list[str]:
        """Those that it was sent with."""
        request = await self.asked_for()
        return list(request["tags"]) if request is not None else []

    @documented
    async def correlation_id(self) -> str | None:
        """As its sender calls it."""
        request = await self.asked_for()
        return (request["correlation_id"] or None) if request is not None else None

    @documented
    async def user_id(self) -> strawberry.ID | None:
        """The user it was sent to, whether or not there is still such a user."""
        request = await self.asked_for()
        return strawberry.ID(request["user_id"]) if request is not None and request["user_id"] else None

    @documented
    async def user(self) -> User | None:
        """The user as of now; null where it was sent to addresses, or the user is gone."""
        request = await self.asked_for()
        if request is None or not request["user_id"]:
            return None
        row = await self.loaders.users.load(request["user_id"])
        return user_of(row) if row is not None else None

    @documented
    async def template(self) -> TemplateVersion | None:
        """The version it was rendered with; before that the one it names, or the published one."""
        request = await self.asked_for()
        if request is None or not request["template_id"]:
            return None
        version = request["template_version"]
        if version is None:
            events = await self.loaders.events.load(self.uuid)
            used = (event["template_version"] for event in events if event["template_version"] is not None)
            version = next(used, None)
        row = await self.loaders.versions.load((request["template_id"], version))
        return version_of(row) if row is not None else None

    @documented
    async def messages(self) -> list[Message]:
        """One per channel and address."""
        return [_message(self, shown) for shown in (await self._shown())["messages"]]

    @documented
    async def events(self, first: int = 50) -> list[Event]:
        """Its facts, in the order of time."""
        check_first(first, MAX_EVENTS)
        events = await self.loaders.events.load(self.uuid)
        return [event_of(event_entry(event)) for event in events[:first]]

    @documented
    async def explanation(self, info: Info) -> JSON | None:
        """The whole story, as REST's /explain; asks the store several questions."""
        context = info.context
        events = await self.loaders.events.load(self.uuid)
        accepted = await self.asked_for() is not None
        facts = await gather_facts(
            context.services.status_store, context.tenant, self.uuid, Found(accepted, tuple(events))
        )
        return JSON(explain_facts(facts))


def found_notification(notification_id: UUID, events: Sequence[Fact], context: Context) -> Notification:
    """One that a status was read of."""
    loaders = context.loaders
    loaders.events.prime(notification_id, tuple(events))
    return noted(str(notification_id), rollup(str(notification_id), 0, events), loaders, context)


def noted(
    notification_id: str, current: Row, loaders: Loaders, context: Context, request: Row | None = None
) -> Notification:
    """One whose `status` and `reason` are known."""
    return Notification(
        id=strawberry.ID(notification_id),
        state=State(current["status"]),
        reason=current["reason"],
        loaders=loaders,
        request=request,
        accepted_lane=context.services.statuses.lane_of(context.tenant, notification_id),
    )


def message_in(notification: Notification, events: Sequence[Fact], message_id: str) -> Message | None:
    """A message of the notification."""
    messages = rollup(notification.id, 0, events)["messages"]
    return next((_message(notification, shown) for shown in messages if shown["id"] == message_id), None)
