"""The query of the URL to which a provider reports deliveries, written and read here.

    https://notify.shop.example/callbacks/twilio?message_id=…&notification_id=…&tenant=…&lane=…&attempt=…&provider=…

The notification cannot be found from a message's id alone, so the query carries it. A vendor that signs the whole URL makes the
query trustworthy, so no store is read. A fragment of the URL stays at its end: vendors take their own options from there.
May import schemas. Never: an address, a signature, a vendor's word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

from runtime import ids
from schemas.events import LANES, ChannelMessage
from schemas.identity import TENANT

PATH = "/callbacks/"
"""Before the kind of the provider."""
_ATTEMPT = re.compile(r"[0-9]{1,4}", re.ASCII)


class AttemptRef(NamedTuple):
    """What a receipt is about."""

    notification_id: str
    message_id: str
    tenant: str
    lane: str
    attempt: int


def subject_fields(message: ChannelMessage, provider: str) -> dict[str, str]:
    """What a report has to bring back, by name: in a URL's query, or in fields that a vendor echoes."""
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


def message_id_of(query: Mapping[str, str]) -> str | None:
    """Our message id in a query that is trusted, None when there is none."""
    return _canonical(query.get("message_id", ""))


def attempt_ref_of(query: Mapping[str, str]) -> AttemptRef | None:
    """What a query that is trusted is about; None when it lacks a part, or has one that cannot be ours."""
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
