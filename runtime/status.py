"""Delivery-status events: one builder and one record form for every stage that states a fact.

May import schemas. Never: the decision what the fact is.
"""

from __future__ import annotations

from datetime import UTC, datetime

from runtime import ids
from runtime.records import Headers, InRecord, OutRecord
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
MAX_TRACEPARENT_BYTES = 256
"""Version 00 has 55, a later one may append to that; a stranger's may be anything."""
_OPTED_OUT = "opted out at the provider"


def source_of(record: InRecord) -> Source:
    """Where a record stands, for DeliveryStatus.source."""
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset}


def traceparent_of(headers: Headers) -> bytes | None:
    """The W3C traceparent among headers; None for what is too long to be one."""
    for name, value in headers:
        if name == "traceparent":
            return value if value is None or len(value) <= MAX_TRACEPARENT_BYTES else None
    return None


_LAST_MS = 253_402_300_799_999


def rfc3339(milliseconds: int) -> str:
    """2026-03-01T12:00:00.000Z; what lies outside the years 1970 to 9999, as a stranger may write it, as the nearest of them."""
    if not 0 <= milliseconds <= _LAST_MS:
        milliseconds = 0 if milliseconds < 0 else _LAST_MS
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def invalid_since(code: str, milliseconds: int) -> str:
    """The detail of a dead address whose provider says since when it is dead."""
    return f"{code} since {rfc3339(milliseconds)}"


def since(detail: str | None) -> int | None:
    """The time in such a detail, in milliseconds; None when there is none."""
    try:
        moment = datetime.strptime((detail or "").rpartition(" since ")[2], "%Y-%m-%dT%H:%M:%S.%fZ")
    except ValueError:
        return None
    return int(moment.replace(tzinfo=UTC).timestamp() * 1000)


def opted_out(code: str) -> str:
    """The detail of a refusal because the recipient has told the provider to stop."""
    return f"{code} {_OPTED_OUT}"


def says_opted_out(detail: str | None) -> bool:
    """Whether a detail says so."""
    return (detail or "").endswith(_OPTED_OUT)


def _recipient(user_id: str | None, addresses: list[tuple[str, str]]) -> str | None:
    if not user_id and not (addresses and addresses[0][1]):
        return None
    return ids.recipient(user_id, *(addresses[0] if addresses else (None, None)))


def request_status(
    request: NotificationRequest, lane: str, state: str, *, now: int, reason: str | None = None, detail: str | None = None,
    source: Source | None = None,
) -> DeliveryStatus:  # fmt: skip
    """A fact about a notification as a whole."""
    return {
        "event_id": ids.event_id(request["notification_id"], state),
        "notification_id": request["notification_id"],
        "message_id": None,
        "tenant": request["tenant"],
        "channel": None,
        "lane": lane,
        "state": state,
        "reason": reason,
        "detail": detail,
        "attempt": 0,
        "provider": None,
        "provider_message_id": None,
        "possible_duplicate": False,
        "template_id": request.get("template_id"),
        "template_version": request.get("template_version"),
        "preference_version": None,
        "occurred_at": now,
        "latency_ms": None,
        "source": source,
        "correlation_id": request.get("correlation_id"),
        "recipient": _recipient(
            request.get("user_id"), [(a["channel"], a["value"]) for a in request.get("addresses", ())]
        ),
    }


def message_status(
    message: ChannelMessage, state: str, *, now: int, attempt: int, reason: str | None = None, detail: str | None = None,
    provider: str | None = None, provider_message_id: str | None = None, latency_ms: int | None = None,
    source: Source | None = None,
) -> DeliveryStatus:  # fmt: skip
    """A fact about one message."""
    return {
        "event_id": ids.event_id(message["message_id"], state, attempt),
        "notification_id": message["notification_id"],
        "message_id": message["message_id"],
        "tenant": message["tenant"],
        "channel": message["channel"],
        "lane": message["lane"],
        "state": state,
        "reason": reason,
        "detail": detail,
        "attempt": attempt,
        "provider": provider,
        "provider_message_id": provider_message_id,
        "possible_duplicate": message["possible_duplicate"],
        "template_id": message["template_id"],
        "template_version": message["template_version"],
        "preference_version": message["preference_version"],
        "occurred_at": now,
        "latency_ms": latency_ms,
        "source": source,
        "correlation_id": message["correlation_id"],
        "recipient": _recipient(message["user_id"], [(message["channel"], message["address"])]),
    }


def status_record(status: DeliveryStatus, traceparent: bytes | None = None) -> OutRecord:
    """The record for notify.status.v1, with the CloudEvents headers of a public topic.

    A status that would be too large, by what a stranger calls things, goes without those names. Raises RecordTooLarge when
    the tenant alone is.
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
    return OutRecord(STATUS, status["notification_id"].encode(), value, headers)


def without_names(status: DeliveryStatus) -> DeliveryStatus:
    """The fact alone, without what the request calls things and without many words."""
    detail = status["detail"]
    return {
        **status, "correlation_id": None, "recipient": None, "template_id": None, "provider_message_id": None,
        "detail": detail[:_MAX_DETAIL] if detail is not None else None,
    }  # fmt: skip
