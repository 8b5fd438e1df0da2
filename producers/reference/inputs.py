"""Reference data as callers give it: users, preferences, templates, suppressions. Every face takes these models.

May import pydantic, schemas and runtime. Never: HTTP, SQL.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Self
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field, model_validator

from producers.addresses import NORMAL_FORMS, display_name
from producers.notification import Category, Device, Email, Id, Line, Locale, Phone, Strict, Time, UserId
from producers.reference.store import NewSuppression as Stored
from producers.reference.store import Row
from runtime.templates.layouts import Written
from schemas.channels import ChannelName

MAX_VERSION = 2**31 - 1


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _time_zone(text: str) -> str:
    if text not in _time_zones():
        raise ValueError("not an IANA time zone, like Europe/Berlin")
    return text


class UserFields(Strict):
    """What is known of a recipient."""

    name: Annotated[str, AfterValidator(display_name)] | None = None
    email: Email | None = None
    phone: Phone | None = None
    locale: Locale | None = None
    time_zone: Annotated[str, AfterValidator(_time_zone)] | None = None
    devices: Annotated[list[Device], Field(max_length=100, default_factory=list)]

    def fields(self) -> Row:
        """As the store takes it."""
        return {
            **self.model_dump(exclude={"devices"}),
            "devices": [d.model_dump(exclude_none=True) for d in self.devices],
        }


def _no_step(user_id: str) -> str:
    if user_id in (".", ".."):
        raise ValueError("an id of one or two dots cannot be called: clients take it for a step in a path")
    return user_id


class NewUser(UserFields):
    """A recipient."""

    id: Annotated[UserId, AfterValidator(_no_step)]


class ReplacedUser(UserFields):
    """A recipient; the id is the path's."""

    id: UserId | None = None


_Choices = dict[ChannelName, bool]


class Preferences(Strict):
    """What a recipient wants; what is not said is wanted."""

    channels: Annotated[_Choices, Field(default_factory=dict)]
    categories: Annotated[dict[Category, _Choices], Field(max_length=200, default_factory=dict)]


class NewVersion(Strict):
    """The sources of a template. Parts by channel, and again by locale."""

    id: Id | None = None
    category: Category | None = None
    """None: that of the published version, or else of the latest."""
    channels: dict[str, Any]
    locales: Annotated[dict[Locale, dict[str, Any]], Field(max_length=100, default_factory=dict)]
    layout: Id | None = None
    publish: bool = True

    def written_as(self, name: str) -> Written:
        """As its author wrote it, under this id."""
        return Written(name, self.channels, self.locales, self.layout)


class NewTemplate(NewVersion):
    """A template with its first version."""

    id: Id
    category: Category = "default"


class Published(Strict):
    """The version that notifications take that name none."""

    version: Annotated[int, Field(ge=1, le=MAX_VERSION)]


class NewSuppression(Strict):
    """An address that must not be sent to, until `expires_at` where that is given."""

    channel: ChannelName
    address: Annotated[str, Field(max_length=4096)]
    reason: Annotated[Line, Field(min_length=1, max_length=64)] = "manual"
    expires_at: Time | None = None

    @model_validator(mode="after")
    def _normal(self) -> Self:
        NORMAL_FORMS[self.channel](self.address)
        return self

    def stored(self) -> Stored:
        """As the store takes it: the address in its normal form."""
        return Stored(self.channel, NORMAL_FORMS[self.channel](self.address), self.reason, self.expires_at)


class HashedSuppression(Strict):
    """One that came out of a bounce and has no address: what an export says of it, taken by an import only."""

    channel: ChannelName
    address_hash: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    reason: Annotated[Line, Field(min_length=1, max_length=64)] = "manual"
    expires_at: Time | None = None

    def stored(self) -> Stored:
        """As the store takes it."""
        return Stored(self.channel, None, self.reason, self.expires_at, self.address_hash)
