"""The records a decision becomes: dispatch messages, status events, timers; pure.

May import runtime values and schemas. Never: a decision, a Kafka client.
"""

from __future__ import annotations

from typing import Any

from processors.router.policy import Target, Verdict
from processors.router.rendering import Parts
from runtime import ids
from runtime.records import ConsumerRecord, Headers, ProducerRecord
from runtime.status import message_status, source_of, status_record, traceparent_of
from schemas.codec import RecordTooLarge, codec
from schemas.events import ChannelMessage, NotificationRequest, Timer
from schemas.topics import MAX_VALUE_BYTES, TIMERS, dispatch_topic

_AROUND = 1_024
"""Bytes that a timer needs beside key, headers and record, and by which a record grows from one attempt to the next."""


def request_key(request: NotificationRequest) -> bytes:
    """The key `tenant:recipient`; computed, because another publisher's record may carry any key."""
    addresses = [(a["channel"], a["value"]) for a in request.get("addresses", ())]
    return ids.request_key(request["tenant"], request.get("user_id"), addresses)


def channel_message(
    request: NotificationRequest,
    lane: str,
    channel: str,
    target: Target | None,
    parts: Parts,
    *,
    category: str,
    template_version: int | None,
    preference_version: int | None,
    now: int,
) -> ChannelMessage:
    """The message for one address; without a target it only carries a status."""
    generation = request.get("generation", 0)
    overrides: Any = request.get("overrides")
    return {
        "message_id": ids.message_id(
            request["notification_id"], channel, target.fingerprint if target else "", generation
        ),
        "notification_id": request["notification_id"],
        "tenant": request["tenant"],
        "accepted_at": request["accepted_at"],
        "channel": channel,
        "lane": lane,
        "category": category,
        "user_id": request.get("user_id"),
        "address": target.address if target else "",
        "platform": target.platform if target else None,
        "subject": parts.subject,
        "text": parts.text,
        "html": parts.html,
        "title": parts.title,
        "body": parts.body,
        "data": parts.json if parts.data is None else parts.data,
        "attempt": 1,
        "retries": 0,
        "generation": generation,
        "delivery": request.get("delivery", "at_least_once"),
        "expires_at": request.get("expires_at"),
        "template_id": request.get("template_id"),
        "template_version": template_version,
        "preference_version": preference_version,
        "possible_duplicate": False,
        "correlation_id": request.get("correlation_id"),
        "overrides": overrides,
        "provider": None,
        "replay": request.get("replay"),
        "routed_at": now,
    }


def routed(message: ChannelMessage, key: bytes, record: ConsumerRecord, *, locale: str | None) -> list[ProducerRecord]:
    """The dispatch record and the event that says so. Raises RecordTooLarge when a retry of it would not fit its timer."""
    traceparent = traceparent_of(record.headers)
    headers: list[tuple[str, bytes]] = [("ce_id", message["message_id"].encode())]
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    status = message_status(
        message, "routed", now=message["routed_at"], attempt=0, locale=locale, source=source_of(record)
    )
    value = codec("ChannelMessage").encode(message)
    limit = MAX_VALUE_BYTES - len(key) - _size(headers) - _AROUND
    if len(value) > limit:
        raise RecordTooLarge("ChannelMessage", len(value), limit)
    return [
        ProducerRecord(dispatch_topic(message["channel"], message["lane"]), key, value, headers),
        status_record(status, traceparent),
    ]


def not_routed(message: ChannelMessage, verdict: Verdict, record: ConsumerRecord) -> ProducerRecord:
    """The event that says why a message is not sent."""
    status = message_status(
        message,
        verdict.state,
        now=message["routed_at"],
        attempt=0,
        reason=verdict.reason,
        detail=verdict.detail,
        source=source_of(record),
    )
    return status_record(status, traceparent_of(record.headers))


def schedule_timer(request: NotificationRequest, key: bytes, record: ConsumerRecord) -> ProducerRecord:
    """The timer that brings the request back to its topic when send_at has come, with send_at cleared.

    Other publishers' headers are kept if they fit. Raises RecordTooLarge when the request itself does not fit.
    """
    timer_id = ids.timer_id(request["notification_id"], "schedule", request.get("generation", 0))
    due_at = request.get("send_at")
    assert due_at is not None
    timer: Timer = {
        "timer_id": timer_id,
        "due_at": due_at,
        "purpose": "schedule",
        "topic": record.topic,
        "key": key,
        "headers": [],
        "value": codec("NotificationRequest").encode({**request, "send_at": None}),
    }
    headers = record.headers
    if _size(headers) + len(timer["value"]) + len(key) + _AROUND > MAX_VALUE_BYTES:
        traceparent = traceparent_of(headers)
        headers = [("traceparent", traceparent)] if traceparent is not None else []
    timer["headers"] = [{"name": name, "value": value or b""} for name, value in headers]
    return ProducerRecord(TIMERS, timer_id.encode(), codec("Timer").encode(timer))


def _size(headers: Headers) -> int:
    """Bytes of headers inside a timer."""
    return sum(len(name.encode()) + len(value or b"") + 8 for name, value in headers)
