"""The queries: what REST reads, by the same functions.

May import strawberry and the services of the context. Never: SQL.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

from api.graphql.connections import DEFAULT_FIRST, Connection, check_first, connection_of
from api.graphql.notifications import Message, Notification, found_notification, message_in, noted
from api.graphql.operations import AccountingHour, Failure, Viewer
from api.graphql.reference import (
    Info,
    Rendered,
    Suppression,
    Template,
    User,
    suppression_of,
    template_of,
    user_of,
)
from api.graphql.scalars import Channel, DateTime, State, channel_of, documented, milliseconds, refused
from api.notifications.listing import cursor_of as id_cursor
from api.notifications.listing import read_cursor as read_id_cursor
from api.pagination import read_cursor, write_cursor
from api.reference.preview import PreviewRequest, render_preview
from api.reference.suppressions import cursor_of as suppression_cursor
from api.reference.suppressions import read_before
from producers.addresses import has_control
from producers.checking import check_model
from runtime.errors import Refusal, RefusedError
from runtime.status import rfc3339
from schemas.identity import HOUR_S
from sinks.rows import MAX_TIME_MS
from tracking.audit import columns
from tracking.listing import Filters
from tracking.story import in_words

From = Annotated[DateTime, strawberry.argument(name="from")]
MAX_TEXT_CHARS = 255
MAX_HOURS = 24 * 92
"""Between the two times of one question about hours."""


@strawberry.input(description="Notifications that have all of these.")
class NotificationFilter:
    state: State | None = None
    user: strawberry.ID | None = None
    tag: str | None = None
    template: strawberry.ID | None = None
    correlation_id: str | None = None
    from_: DateTime | None = strawberry.field(default=None, name="from", description="Accepted at this time or later.")
    to: DateTime | None = strawberry.field(default=None, description="Accepted at this time or before.")


def _filters(asked: NotificationFilter | None) -> Filters:
    if asked is None:
        return Filters()
    return Filters(
        state=asked.state.value if asked.state is not None else "",
        user_id=_text("filter/user", asked.user),
        tag=_text("filter/tag", asked.tag),
        template_id=_text("filter/template", asked.template),
        correlation_id=_text("filter/correlationId", asked.correlation_id),
        from_at=milliseconds(asked.from_) if asked.from_ is not None else 0,
        to_at=min(milliseconds(asked.to), MAX_TIME_MS) if asked.to is not None else MAX_TIME_MS,
    )


def _text(argument: str, value: str | None) -> str:
    if value is not None and len(value) > MAX_TEXT_CHARS:
        raise refused(argument, f"at most {MAX_TEXT_CHARS} characters")
    return value or ""


def _hours(since: DateTime, until: DateTime) -> dict[str, int]:
    """The hours between two times as a question takes them. Raises RefusedError."""
    first, last = (min(milliseconds(time), MAX_TIME_MS) // 1_000 // HOUR_S * HOUR_S for time in (since, until))
    if not 0 <= last - first <= MAX_HOURS * HOUR_S:
        raise refused("to", f"after from, and at most {MAX_HOURS // 24} days later")
    return {"since": first, "until": last}


@strawberry.type
class Query:
    @documented
    async def notification(self, info: Info, id: strawberry.ID) -> Notification | None:
        """One, readable as soon as it is accepted; null where there is none."""
        context = info.context
        try:
            notification_id, found = await context.services.statuses.find(context.tenant, id)
        except RefusedError as exc:
            if exc.kind is Refusal.UNKNOWN:
                return None
            raise
        return found_notification(notification_id, found.events, context)

    @documented
    async def message(self, info: Info, id: strawberry.ID) -> Message | None:
        """One, once analytics have a fact about it; null where there is none."""
        context = info.context
        try:
            message_id = UUID(id)
        except ValueError as exc:
            raise RefusedError(Refusal.INVALID, "invalid_id", "a message id is a UUID") from exc
        asked = {"tenant": context.tenant, "id": message_id.hex}
        rows = await context.services.status_store.select("message_of", asked)
        if not rows:
            return None
        notification_id = UUID(hex=rows[0]["id"])
        events = await context.loaders.events.load(notification_id)
        notification = found_notification(notification_id, events, context)
        return message_in(notification, events, str(message_id))

    @documented
    async def notifications(
        self,
        info: Info,
        first: int = DEFAULT_FIRST,
        after: str | None = None,
        filter: NotificationFilter | None = None,
    ) -> Connection[Notification]:
        """The newest first. What was accepted in the last seconds may be missing until analytics have it."""
        context = info.context
        before = read_id_cursor(after) if after else None
        page = await context.services.listing.page(context.tenant, _filters(filter), before, check_first(first))
        pairs = list(zip(page.entries, page.rows, strict=True))
        return connection_of(
            pairs,
            page.next_id is not None,
            lambda pair: noted(pair[0]["id"], pair[0], context.loaders, context, pair[1]),
            lambda pair: id_cursor(UUID(pair[0]["id"])),
            id_cursor(page.next_id) if page.next_id is not None else None,
        )

    @documented
    async def user(self, info: Info, id: strawberry.ID) -> User | None:
        """One; null where there is none."""
        row = None if has_control(id) else await info.context.loaders.users.load(id)
        return user_of(row) if row is not None else None

    @documented
    async def users(
        self, info: Info, first: int = DEFAULT_FIRST, after: str | None = None, search: str | None = None
    ) -> Connection[User]:
        """By id; `search` is how their ids begin. A page of large ones has fewer than `first`."""
        (begin,) = read_cursor(after or "", str) or ("",)
        prefix = _text("search", search)
        if has_control(prefix):
            return connection_of((), False, user_of, _user_cursor)
        service = info.context.services.reference
        rows, more = await service.list_users(info.context.tenant, begin, check_first(first), prefix)
        return connection_of(rows, more, user_of, _user_cursor)

    @documented
    async def template(self, info: Info, id: strawberry.ID) -> Template | None:
        """One; null where there is none."""
        row = None if has_control(id) else await info.context.loaders.templates.load(id)
        return template_of(row) if row is not None else None

    @documented
    async def templates(self, info: Info, first: int = DEFAULT_FIRST, after: str | None = None) -> Connection[Template]:
        """By id."""
        (begin,) = read_cursor(after or "", str) or ("",)
        service = info.context.services.reference
        rows, more = await service.list_templates(info.context.tenant, begin, check_first(first))
        return connection_of(rows, more, template_of, lambda row: write_cursor(row["template_id"]))

    @documented
    async def preview(
        self,
        info: Info,
        template: strawberry.ID,
        channel: Channel,
        version: int | None = None,
        locale: str | None = None,
        data: JSON | None = None,
    ) -> Rendered:
        """What a version, else the published one, else the latest makes of some data. Nothing is sent."""
        context = info.context
        given = {"channel": channel.value, "version": version, "locale": locale, "data": data}
        asked = check_model(PreviewRequest, {name: value for name, value in given.items() if value is not None})
        services = context.services
        _, parts = await render_preview(services.reference_store, services.previewer, context.tenant, template, asked)
        counted = parts.pop("parts", None)
        return Rendered(**parts, sms_parts=counted)

    @documented
    async def suppressions(
        self,
        info: Info,
        first: int = DEFAULT_FIRST,
        after: str | None = None,
        channel: Channel | None = None,
        reason: str | None = None,
        address: str | None = None,
    ) -> Connection[Suppression]:
        """The newest first; an expired one stays in the list until it is deleted. `address` is in any spelling."""
        rows, more = await info.context.services.reference.list_suppressions(
            info.context.tenant,
            check_first(first),
            channel=channel.value if channel is not None else None,
            reason=reason,
            address=address,
            before=read_before(after or ""),
        )
        return connection_of(rows, more, suppression_of, suppression_cursor)

    @documented
    async def accounting(
        self,
        info: Info,
        from_: From,
        to: DateTime,
    ) -> list[AccountingHour]:
        """The hours that had any notification: accepted, and what became of it."""
        asked = {"tenant": info.context.tenant, **_hours(from_, to)}
        rows = await info.context.services.status_store.select("audit", asked)
        return [AccountingHour(hour=_time(row["hour"]), **{name: int(row[name]) for name in columns()}) for row in rows]

    @documented
    async def failures(self, info: Info, from_: From, to: DateTime, first: int = 20) -> list[Failure]:
        """What failed, the most frequent first."""
        asked = {"tenant": info.context.tenant, **_hours(from_, to), "limit": check_first(first)}
        rows = await info.context.services.status_store.select("failures", asked)
        return [
            Failure(
                channel=channel_of(row["channel"]),
                provider=row["provider"] or None,
                state=row["state"],
                reason=row["reason"] or None,
                why=in_words(row["state"], row["reason"]),
                failures=row["failures"],
                last_at=DateTime(rfc3339(row["last_at"])),
                example_detail=row["example_detail"] or None,
                example_notification_id=strawberry.ID(row["example_notification_id"]),
            )
            for row in rows
        ]

    @documented
    async def viewer(self, info: Info) -> Viewer:
        """Whose key asks."""
        return Viewer(tenant=info.context.tenant, key_id=strawberry.ID(info.context.caller.key_id))


def _time(hour: datetime) -> DateTime:
    # The driver gives times of UTC without a zone.
    return DateTime(f"{hour:%Y-%m-%dT%H:%M:%S}.000Z")


def _user_cursor(row: dict[str, Any]) -> str:
    return write_cursor(row["user_id"])
