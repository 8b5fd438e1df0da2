"""Users, templates and suppressions as GraphQL shows them: the fields of REST in camelCase.

May import strawberry and producers.reference.service. Never: a question to a store.
"""

from __future__ import annotations

from typing import Any

import strawberry
from strawberry.scalars import JSON

from api.graphql.context import Context
from api.graphql.scalars import Channel, DateTime, documented
from producers.reference.service import show_listed_template, show_suppression, show_template, show_user

Info = strawberry.Info[Context, None]
Row = dict[str, Any]


@strawberry.type(description="What a recipient wants; what is not said is wanted.")
class Preferences:
    channels: JSON
    categories: JSON


@strawberry.type(description="A recipient.")
class User:
    id: strawberry.ID
    name: str | None
    email: str | None
    phone: str | None
    locale: str | None
    time_zone: str | None
    devices: list[JSON]
    created_at: DateTime
    updated_at: DateTime
    known: strawberry.Private[Row | None] = None

    @documented
    async def preferences(self, info: Info) -> Preferences:
        """Read with the user, or by a question of its own for all users of a page."""
        row = self.known or await info.context.loaders.users.load(self.id)
        found = row["preferences"] if row is not None else {"channels": {}, "categories": {}}
        return Preferences(channels=found["channels"], categories=found["categories"])


def user_of(row: Row) -> User:
    """A user out of a row of the store."""
    return User(**show_user(row), known=row if "preferences" in row else None)


@strawberry.type(description="A version of a template, as its author wrote it.")
class TemplateVersion:
    id: strawberry.ID
    version: int
    published: bool
    category: str
    variables: list[str]
    layout: str | None
    channels: JSON
    locales: JSON


def version_of(row: Row) -> TemplateVersion:
    """A version out of a row of the store."""
    return TemplateVersion(**show_template(row, sources=True))


@strawberry.type(description="A template, and which of its versions notifications take that name none.")
class Template:
    id: strawberry.ID
    category: str
    published_version: int | None
    latest_version: int
    updated_at: DateTime

    @documented
    async def published(self, info: Info) -> TemplateVersion | None:
        """The version that notifications take that name none; null while none is published."""
        if self.published_version is None:
            return None
        return await load_version(info, self.id, self.published_version)

    @documented
    async def version(self, info: Info, number: int | None = None) -> TemplateVersion | None:
        """A version; else the published one, else the latest."""
        return await load_version(info, self.id, number)


async def load_version(info: Info, template_id: str, number: int | None) -> TemplateVersion | None:
    """None where there is none."""
    row = await info.context.loaders.versions.load((template_id, number))
    return version_of(row) if row is not None else None


def template_of(row: Row) -> Template:
    """A template out of a row of the store."""
    return Template(**show_listed_template(row))


@strawberry.type(description="An address that is not sent to.")
class Suppression:
    id: strawberry.ID
    channel: Channel
    address: str | None
    address_hash: str
    reason: str
    source: str | None
    expires_at: DateTime | None
    created_at: DateTime


def suppression_of(row: Row) -> Suppression:
    """A suppression out of a row of the store."""
    return shown_suppression(show_suppression(row))


def shown_suppression(shown: Row) -> Suppression:
    """A suppression as the service shows it."""
    return Suppression(**{**shown, "channel": Channel(shown["channel"])})


@strawberry.type(description="What a template makes of some data; parts that its channel has not are null.")
class Rendered:
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    title: str | None = None
    body: str | None = None
    data: JSON | None = None
    json: JSON | None = None
    sms_parts: JSON | None = None
