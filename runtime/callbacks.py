"""What a report has to bring back about its message, written and read here: as a URL's query, or as one word, the token.

    https://notify.shop.example/callbacks/twilio?message_id=…&notification_id=…&tenant=…&lane=…&attempt=…&provider=…
    heliograph=AXLk…   base64url without padding of: version 1, message id (16 bytes), notification id (16), lane (1, its
                       place in LANES), attempt (2, big-endian), length of the tenant (1), tenant, account

The notification cannot be found from a message's id alone, so both carry it. A vendor that signs what it repeats makes it
trustworthy, so no store is read. A fragment of the URL stays at its end: vendors take their own options from there.
The token has the characters that every vendor takes, and one name: SendGrid has an `attempt` of its own.
May import schemas. Never: an address, a signature, a vendor's word.
"""

from __future__ import annotations

import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

from runtime import ids
from schemas.events import LANES, ChannelMessage
from schemas.identity import TENANT

PATH = "/callbacks/"
"""Before the kind of the provider."""
TOKEN_FIELD = "heliograph"
"""Name of the field in which a vendor brings the token back."""
_ATTEMPT = re.compile(r"[0-9]{1,4}", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{50,256}", re.ASCII)
_VERSION = 1
_VERSION_BYTE = bytes([_VERSION])
_PLACE_OF = {lane: place for place, lane in enumerate(LANES)}
_TAIL = struct.Struct(">BHB")
"""Of a token's head: lane, attempt, length of the tenant."""
_HEAD = 37
"""Bytes of a token before the tenant."""


class AttemptRef(NamedTuple):
    """What a receipt is about."""

    notification_id: str
    message_id: str
    tenant: str
    lane: str
    attempt: int


class Subject(NamedTuple):
    """What a report says that it is about: as much as can be read of it."""

    message_id: str | None = None
    attempt_ref: AttemptRef | None = None
    provider: str | None = None
    """The account that sent it."""
    recipient: str | None = None
    """As a status event has it, where it is known."""


NO_SUBJECT = Subject()


def subject_fields(message: ChannelMessage, provider: str) -> dict[str, str]:
    """What a report has to bring back, by name."""
    return {
        "message_id": message["message_id"],
        "notification_id": message["notification_id"],
        "tenant": message["tenant"],
        "lane": message["lane"],
        "attempt": str(message["attempt"]),
        "provider": provider,
    }


def callback_url(base: str, message: ChannelMessage, provider: str) -> str:
    """Where a provider reports about this message."""
    url, hash_sign, fragment = base.partition("#")
    query = urlencode(subject_fields(message, provider))
    return f"{url}{'&' if '?' in url else '?'}{query}{hash_sign}{fragment}"


def subject_token(message: ChannelMessage, provider: str = "") -> str | None:
    """The token of a message; None for one that is not ours: no report can be about it."""
    tenant = message["tenant"].encode()
    try:
        head = (
            _VERSION_BYTE
            + ids.bytes_of(message["message_id"])
            + ids.bytes_of(message["notification_id"])
            + _TAIL.pack(_PLACE_OF[message["lane"]], message["attempt"], len(tenant))
        )
    except (ValueError, KeyError, struct.error):
        return None
    return urlsafe_b64encode(head + tenant + provider.encode()).rstrip(b"=").decode()


def token_fields(message: ChannelMessage, provider: str) -> dict[str, str]:
    """Fields for a vendor that repeats them: the token, and the message id, which people search for."""
    token = subject_token(message, provider)
    return {"message_id": message["message_id"], **({TOKEN_FIELD: token} if token else {})}


def subject_of_token(token: object) -> Subject:
    """What a token that is trusted is about; NO_SUBJECT for what is none."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return NO_SUBJECT
    try:
        raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        version, lane, attempt = raw[0], raw[33], int.from_bytes(raw[34:36], "big")
        end = _HEAD + raw[36]
        if version != _VERSION or end > len(raw):
            return NO_SUBJECT
        return subject_of(
            {
                "message_id": ids.text_of_bytes(raw[1:17]),
                "notification_id": ids.text_of_bytes(raw[17:33]),
                "tenant": raw[_HEAD:end].decode(),
                "lane": LANES[lane],
                "attempt": str(attempt),
                "provider": raw[end:].decode(),
            }
        )
    except (ValueError, IndexError):
        return NO_SUBJECT


def subject_of(fields: Mapping[str, str]) -> Subject:
    """What fields that are trusted are about."""
    return Subject(message_id_of(fields), attempt_ref_of(fields), fields.get("provider") or None)


def message_id_of(fields: Mapping[str, str]) -> str | None:
    """Our message id in fields that are trusted, None when there is none."""
    return _canonical(fields.get("message_id", ""))


def attempt_ref_of(query: Mapping[str, str]) -> AttemptRef | None:
    """What fields that are trusted are about; None when they lack a part, or have one that cannot be ours."""
    message_id = message_id_of(query)
    notification_id = _canonical(query.get("notification_id", ""))
    tenant = query.get("tenant", "")
    lane = query.get("lane", "")
    attempt = query.get("attempt", "")
    if message_id is None or notification_id is None or lane not in LANES:
        return None
    if not TENANT.fullmatch(tenant) or not _ATTEMPT.fullmatch(attempt):
        return None
    try:
        ids.accepted_at(notification_id)
    except ValueError:
        return None
    return AttemptRef(notification_id, message_id, tenant, lane, int(attempt))


def _canonical(text: str) -> str | None:
    return text if ids.is_canonical(text) else None
