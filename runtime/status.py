"""Delivery-status events: one builder and one record form for every stage that states a fact.

May import schemas. Never: the decision what the fact is.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypedDict, Unpack, cast

from runtime import ids
from runtime.records import ConsumerRecord, Headers, ProducerRecord
from schemas.channels import ROWS
from schemas.codec import RecordTooLarge, codec
from schemas.events import ChannelMessage, DeliveryStatus, NotificationRequest, Source
from schemas.topics import STATUS

_FIXED_HEADERS: tuple[tuple[str, bytes], ...] = (
    ("ce_specversion", b"1.0"),
    ("ce_type", b"heliograph.notify.status.v1"),
    ("ce_source", b"heliograph"),
    ("content-type", b"application/avro"),
)

_MAX_DETAIL = 1_000
_HAS_DOMAIN = frozenset(row.name for row in ROWS.values() if row.shape.has_domain)
_DOMAIN = re.compile(r"[a-z0-9.-]{1,253}")
MAX_TRACEPARENT_BYTES = 256
"""Version 00 has 55, a later one may append to that; other publishers may write any length."""


def source_of(record: ConsumerRecord) -> Source:
    """A record's position, for DeliveryStatus.source."""
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}


def traceparent_of(headers: Headers) -> bytes | None:
    """The W3C traceparent among headers; None for what is too long to be one."""
    for name, value in headers:
        if name == "traceparent":
            return value if value is None or len(value) <= MAX_TRACEPARENT_BYTES else None
    return None


_LAST_MS = 253_402_300_799_999


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def rfc3339(milliseconds: int) -> str:
    """2026-03-01T12:00:00.000Z; a time outside the years 1970 to 9999, which other publishers may write, becomes the nearest."""
    if not 0 <= milliseconds <= _LAST_MS:
        milliseconds = 0 if milliseconds < 0 else _LAST_MS
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


def _recipient(user_id: str | None, addresses: list[tuple[str, str]]) -> str | None:
    if not user_id and not (addresses and addresses[0][1]):
        return None
    return ids.recipient(user_id, *(addresses[0] if addresses else (None, None)))


def _domain(address: str) -> str | None:
    """The domain of a mail address; None where an address from elsewhere ends in something else, which might name a person."""
    domain = address.rpartition("@")[2].lower()
    return domain if _DOMAIN.fullmatch(domain) and len(domain) < len(address) else None


class Particulars(TypedDict, total=False):
    """What a fact may say beside what each says: the fields of DeliveryStatus, nothing or false where one is left out."""

    message_id: str | None
    channel: str | None
    reason: str | None
    detail: str | None
    provider: str | None
    provider_message_id: str | None
    possible_duplicate: bool
    template_id: str | None
    template_version: int | None
    preference_version: int | None
    latency_ms: int | None
    source: Source | None
    correlation_id: str | None
    recipient: str | None
    opted_out: bool
    invalid_since: int | None
    category: str | None
    locale: str | None
    domain: str | None
    code: str | None
    due_at: int | None


_EMPTY: dict[str, Any] = {
    "event_id": "",
    "notification_id": "",
    "tenant": "",
    "lane": "",
    "state": "",
    "occurred_at": 0,
    "attempt": 0,
    "message_id": None,
    "channel": None,
    "reason": None,
    "detail": None,
    "provider": None,
    "provider_message_id": None,
    "possible_duplicate": False,
    "template_id": None,
    "template_version": None,
    "preference_version": None,
    "latency_ms": None,
    "source": None,
    "correlation_id": None,
    "recipient": None,
    "opted_out": False,
    "invalid_since": None,
    "category": None,
    "locale": None,
    "domain": None,
    "code": None,
    "due_at": None,
}


def fact(
    event_id: str,
    notification_id: str,
    tenant: str,
    lane: str,
    state: str,
    now: int,
    particulars: Particulars,
    *,
    attempt: int = 0,
) -> DeliveryStatus:
    """A DeliveryStatus; the only place that makes one. `now` in milliseconds."""
    said: dict[str, Any] = _EMPTY.copy()
    said.update(particulars)
    said["event_id"] = event_id
    said["notification_id"] = notification_id
    said["tenant"] = tenant
    said["lane"] = lane
    said["state"] = state
    said["occurred_at"] = now
    said["attempt"] = attempt
    return cast(DeliveryStatus, said)


def request_status(
    request: NotificationRequest, lane: str, state: str, *, now: int, **more: Unpack[Particulars]
) -> DeliveryStatus:
    """A fact about a notification as a whole. Under a replay it is a fact of its own: what was decided before stays told."""
    nid = request["notification_id"]
    about: Particulars = {
        "template_id": request.get("template_id"),
        "template_version": request.get("template_version"),
        "correlation_id": request.get("correlation_id"),
        "recipient": _recipient(
            request.get("user_id"), [(a["channel"], a["value"]) for a in request.get("addresses", ())]
        ),
        **more,
    }
    event_id = ids.event_id(nid, state, 0, request.get("replay") or "")
    return fact(event_id, nid, request["tenant"], lane, state, now, about)


def recipient_of(message: ChannelMessage) -> str | None:
    """Whom a message is for: the user id, else `addr:` and the address hash."""
    return _recipient(message["user_id"], [(message["channel"], message["address"])])


def message_status(
    message: ChannelMessage, state: str, *, now: int, attempt: int, **more: Unpack[Particulars]
) -> DeliveryStatus:
    """A fact about one message. A decision (attempt 0) under a replay is a fact of its own; attempts are counted on anyway."""
    about: Particulars = {
        "message_id": message["message_id"],
        "channel": message["channel"],
        "possible_duplicate": message["possible_duplicate"],
        "template_id": message["template_id"],
        "template_version": message["template_version"],
        "preference_version": message["preference_version"],
        "correlation_id": message["correlation_id"],
        "recipient": recipient_of(message),
        "category": message["category"],
        "domain": _domain(message["address"]) if message["channel"] in _HAS_DOMAIN else None,
        **more,
    }
    replay = message["replay"] if attempt == 0 else None
    event_id = ids.event_id(message["message_id"], state, attempt, replay or "")
    return fact(
        event_id, message["notification_id"], message["tenant"], message["lane"], state, now, about, attempt=attempt
    )


def status_record(status: DeliveryStatus, traceparent: bytes | None = None) -> ProducerRecord:
    """The record for notify.status.v1, with the CloudEvents headers of a public topic.

    A status that is too large because of another publisher's long names is written without them. Raises RecordTooLarge when
    the tenant alone is too large.
    """
    headers: list[tuple[str, bytes]] = [
        ("ce_id", status["event_id"].encode()),
        ("ce_time", rfc3339(status["occurred_at"]).encode()),
        *_FIXED_HEADERS,
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    try:
        value = codec("DeliveryStatus").encode(status)
    except RecordTooLarge:
        value = codec("DeliveryStatus").encode(without_names(status))
    return ProducerRecord(STATUS, status["notification_id"].encode(), value, headers)


def without_names(status: DeliveryStatus) -> DeliveryStatus:
    """The fact alone, without what the request calls things and without many words."""
    detail = status["detail"]
    return {
        **status,
        "correlation_id": None,
        "recipient": None,
        "template_id": None,
        "provider_message_id": None,
        "category": None,
        "locale": None,
        "domain": None,
        "code": None,
        "detail": detail[:_MAX_DETAIL] if detail is not None else None,
    }
