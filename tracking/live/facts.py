"""A record of the status topic as a fact: the same row that sinks/queries/events.sql gives once ClickHouse has it.

May import sinks and tracking.status. Never: a watcher.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from schemas.codec import DecodeError
from sinks.rows import EVENTS_TABLE, NO_ID, NO_LATENCY, event_row
from tracking.live.ring import Entry
from tracking.status import Event

_AT = {name: index for index, name in enumerate(EVENTS_TABLE.columns)}
_SAME = (
    "channel",
    "lane",
    "state",
    "rank",
    "reason",
    "detail",
    "attempt",
    "provider",
    "provider_message_id",
    "possible_duplicate",
    "template_id",
    "occurred_at",
    "due_at",
    "correlation_id",
)


class Fact(NamedTuple):
    """What happened to whose notification, and where the topic says so."""

    tenant: str
    notification_id: str
    recipient: str
    event: Event
    place: str
    """After this record."""
    timestamp: int
    """When the broker had it, ms."""
    partition: int
    offset: int


def fact_of(entry: Entry, place: str) -> Fact | None:
    """None for a record that is not a status: the sink dead-letters it."""
    try:
        row = event_row(entry.value)
    except DecodeError:
        return None
    event: dict[str, Any] = {name: row[_AT[name]] for name in _SAME}
    message = row[_AT["message_id"]]
    event["event_id"] = str(UUID(bytes=row[_AT["event_id"]]))
    event["message_id"] = "" if message == NO_ID else str(UUID(bytes=message))
    event["template_version"] = row[_AT["template_version"]] or None
    event["preference_version"] = row[_AT["preference_version"]] or None
    latency = row[_AT["latency_ms"]]
    event["latency_ms"] = None if latency == NO_LATENCY else latency
    notification_id = str(UUID(bytes=row[_AT["notification_id"]]))
    return Fact(
        row[_AT["tenant"]],
        notification_id,
        row[_AT["recipient"]],
        event,
        place,
        entry.timestamp,
        entry.partition,
        entry.offset,
    )
