"""The channels as data: one row each. Whatever depends on the channel is a column; no other module lists their names.

A new channel is a row here, its vendors (vendors/<kind>/, vendors/registry.py) and its topics (`heliograph topics apply`).
May import the standard library. Never: behaviour of a stage, a vendor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of address. `pattern` is what the router demands of it; the API normalises first (producers/addresses.py)."""

    name: str
    pattern: re.Pattern[str]
    folds_case: bool = False
    """Whether two that differ in case only are one address."""
    has_domain: bool = False
    """Whether what follows its @ says where it is, and not who."""


EMAIL_ADDRESS = Shape(
    "e-mail address",
    re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}"),
    folds_case=True,
    has_domain=True,
)
PHONE_NUMBER = Shape("phone number", re.compile(r"\+[1-9]\d{6,14}"))
DEVICE_TOKEN = Shape("device token", re.compile(r"[\x21-\x7e]{1,4096}"))
HOOK_URL = Shape(
    "webhook's URL",
    # Plain http goes to this machine alone, and only where settings allow that (runtime/outbound.py).
    re.compile(
        r"(?=.{1,2048}$)(?:https://[\x21-\x7e]+|http://(?:127\.0\.0\.1|\[::1\]|localhost)(?::\d{1,5})?(?:/[\x21-\x7e]*)?)"
    ),
)
SHAPES = (EMAIL_ADDRESS, PHONE_NUMBER, DEVICE_TOKEN, HOOK_URL)

LINE_PARTS = frozenset({"subject", "title"})
"""Parts of content that are one line, without control characters."""
OBJECT_PARTS = frozenset({"data", "json"})
"""Parts of content that are a JSON object; in a template its texts are sources: of `data` all values, of `json` those at any depth."""


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel. Parts of content are fields of ChannelMessage (FIELD_OF_PART): all are text but those of OBJECT_PARTS."""

    name: str
    shape: Shape
    given_as: str
    """Field of a request's `to` that holds its addresses."""
    stored_as: str
    """Field of a user and of RecipientProfile that holds them: `devices`, or a field with one address."""
    one_address: bool
    """Whether a recipient has one; else a list of devices, each a message of its own."""
    parts: tuple[str, ...]
    """Parts of its templates and messages."""
    needs_one_of: tuple[str, ...]
    """Inline content without any of these parts says nothing on this channel."""
    blank_parts: tuple[str, ...]
    """Parts that are "" in a message where inline content has none; the others are null."""
    meant_by: tuple[str, ...]
    """Inline content with one of these parts goes to this channel where the request names no channel."""
    meant_alone: bool
    """Whether content that is meant for this channel is meant for no other."""
    bounce_reason: str
    """Reason of `bounced` when a provider calls the address invalid (schemas/reasons.yaml)."""
    suppressible: bool
    """Whether such an address is put on the suppression list; else its device leaves the user's profile."""
    example: str
    """An address for documentation."""
    platforms: tuple[str, ...] = ()
    """Platforms of its devices, which no other channel has; () where an address has none."""
    subscription_platforms: tuple[str, ...] = ()
    """Those of `platforms` whose devices have a subscription (an object) and no token."""


ROWS: Mapping[str, Channel] = {
    row.name: row
    for row in (
        Channel(
            name="email",
            shape=EMAIL_ADDRESS,
            given_as="email",
            stored_as="email",
            one_address=True,
            parts=("subject", "text", "html"),
            needs_one_of=("text", "html"),
            blank_parts=("subject",),
            meant_by=("subject", "html"),
            meant_alone=True,
            bounce_reason="hard_bounce",
            suppressible=True,
            example="zoe@example.org",
        ),
        Channel(
            name="sms",
            shape=PHONE_NUMBER,
            given_as="phone",
            stored_as="phone",
            one_address=True,
            parts=("text",),
            needs_one_of=("text",),
            blank_parts=(),
            meant_by=("text",),
            meant_alone=False,
            bounce_reason="invalid_number",
            suppressible=True,
            example="+4915112345678",
        ),
        Channel(
            name="push",
            shape=DEVICE_TOKEN,
            given_as="device_tokens",
            stored_as="devices",
            one_address=False,
            parts=("title", "body", "data"),
            needs_one_of=("title", "body"),
            blank_parts=("title", "body"),
            meant_by=("title", "body"),
            meant_alone=False,
            bounce_reason="invalid_token",
            suppressible=False,
            example="a-device-token",
            platforms=("fcm", "apns", "onesignal", "webpush"),
            subscription_platforms=("webpush",),
        ),
        Channel(
            name="webhook",
            shape=HOOK_URL,
            given_as="device_tokens",
            stored_as="devices",
            one_address=False,
            parts=("text", "json"),
            needs_one_of=("text", "json"),
            blank_parts=(),
            meant_by=("json",),
            meant_alone=True,
            bounce_reason="gone",
            suppressible=False,
            example="https://hooks.shop.example/notify?key=c2VjcmV0",
            platforms=("webhook", "slack", "teams"),
        ),
    )
}
"""By name, in the order in which a request without channels tries them."""

CHANNELS: tuple[str, ...] = tuple(ROWS)
PARTS: tuple[str, ...] = tuple(dict.fromkeys(part for row in ROWS.values() for part in row.parts))
"""Every part of content of any channel."""
FIELD_OF_PART: Mapping[str, str] = {part: part for part in PARTS} | {"json": "data"}
"""Where ChannelMessage has each part. No channel has data and json, which therefore share a field: one of its own would make a
version of the record that senders of the release before cannot read."""
MESSAGE_PARTS: tuple[str, ...] = tuple(dict.fromkeys(FIELD_OF_PART.values()))
CONTACT_FIELDS: tuple[str, ...] = tuple(dict.fromkeys(row.stored_as for row in ROWS.values() if row.one_address))
"""Fields of a user and of RecipientProfile that hold one address."""
TO_FIELDS: tuple[str, ...] = tuple(dict.fromkeys(row.given_as for row in ROWS.values()))
"""Fields of a request's `to` that hold addresses."""
CHANNEL_OF_PLATFORM: Mapping[str, Channel] = {name: row for row in ROWS.values() for name in row.platforms}
"""A user's devices are the addresses of several channels: the platform of each says of which."""
PLATFORMS: tuple[str, ...] = tuple(CHANNEL_OF_PLATFORM)
SUBSCRIPTION_PLATFORMS: tuple[str, ...] = tuple(name for row in ROWS.values() for name in row.subscription_platforms)
TOKEN_PLATFORMS: tuple[str, ...] = tuple(name for name in PLATFORMS if name not in SUBSCRIPTION_PLATFORMS)

# pydantic and FastAPI read the closed lists from these at run time; a type checker knows no Literal of a variable.
if TYPE_CHECKING:
    ChannelName = str
    Platform = str
else:
    ChannelName = Literal[CHANNELS]
    Platform = Literal[PLATFORMS]
