"""Scalars and enums of the schema.

May import strawberry and the closed lists of schemas. Never: a type with fields.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NewType

import strawberry
from graphql import GraphQLError
from strawberry.types.scalar import ScalarDefinition

from producers.notification import to_milliseconds
from runtime.errors import FieldError, Refusal, RefusedError
from schemas.channels import CHANNELS

DateTime = NewType("DateTime", str)
"""RFC 3339 in UTC with milliseconds; as input with any offset."""


def _parse_time(value: Any) -> DateTime:
    try:
        to_milliseconds(value)
    except ValueError as exc:
        raise GraphQLError(str(exc)) from exc
    return DateTime(value)


SCALARS: dict[object, ScalarDefinition] = {
    DateTime: strawberry.scalar(
        name="DateTime",
        description="RFC 3339 in UTC with milliseconds, as 2026-03-01T12:00:00.000Z; as input with any offset.",
        specified_by_url="https://www.rfc-editor.org/rfc/rfc3339",
        serialize=str,
        parse_value=_parse_time,
    )
}


def documented(resolver: Callable[..., Any]) -> Any:
    """A field whose docstring is its description."""
    return strawberry.field(resolver, description=" ".join((resolver.__doc__ or "").split()))


def milliseconds(time: DateTime) -> int:
    """Since 1970."""
    found = to_milliseconds(time)
    assert isinstance(found, int)
    return found


@strawberry.enum(description="As REST's channels, in capitals.")
class Channel(Enum):
    """As schemas/channels.py has them."""

    vars().update({name.upper(): name for name in CHANNELS})


@strawberry.enum(description="Where a notification or a message stands; as REST's `status`, in capitals.")
class State(Enum):
    """As schemas/reasons.yaml has them."""

    ACCEPTED = "accepted"
    SCHEDULED = "scheduled"
    HELD = "held"
    ROUTED = "routed"
    SENDING = "sending"
    SENT = "sent"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    BOUNCED = "bounced"
    REJECTED = "rejected"
    FAILED = "failed"
    SUPPRESSED = "suppressed"
    SKIPPED = "skipped"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    SIMULATED = "simulated"
    UNKNOWN = "unknown"
    DEAD_LETTERED = "dead_lettered"


_CHANNELS = {channel.value: channel for channel in Channel}


def channel_of(name: str | None) -> Channel | None:
    """None also for a channel that another publisher made up."""
    return _CHANNELS.get(name or "")


def refused(argument: str, why: str) -> RefusedError:
    """An argument that cannot be met; `argument` is its path in the field's arguments, with slashes."""
    return RefusedError(
        Refusal.INVALID,
        "invalid_parameter",
        f"{argument}: {why}",
        errors=[FieldError(f"/{argument}", why, "invalid_parameter")],
    )
