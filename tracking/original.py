"""The request that made a notification, read back from its topic: by the time in the id, then by the id.

A request is published within moments of the time in its id, so a short time range around it is read first, then a longer one,
for clocks that differ and for slow publishers.
May import runtime and schemas. Never: HTTP, a group, a commit.
"""

from __future__ import annotations

from typing import NamedTuple, cast

from runtime import ids
from runtime.clock import system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.consumer import Consumer
from runtime.kafka.time_range import TimeRange
from runtime.records import ConsumerRecord
from runtime.settings import KafkaSettings
from schemas.codec import DecodeError, codec
from schemas.events import NotificationRequest
from schemas.topics import requests_topic

RANGES_MS = ((5_000, 30_000), (600_000, 3_600_000))
"""Before and after the id's time; the second range is read when the first does not have it."""
MAX_RECORDS = 1_000_000
"""Read in one look-up; at 1 kB a record about 10 s."""
TIMEOUT_S = 15.0


class Original(NamedTuple):
    """A request as it was published, and on which lane."""

    request: NotificationRequest
    lane: str


def find_request(settings: KafkaSettings, tenant: str, notification_id: str, lane: str) -> Original | None:
    """The request, None when its topic does not have it any more. Blocks. Raises UnavailableError without an answer in time."""
    accepted_at = ids.accepted_at(notification_id)
    deadline = system_monotonic() + TIMEOUT_S
    consumer = Consumer(settings, client_id="lookup", group=None, detect_eof=True)
    try:
        for before, after in RANGES_MS:
            around = TimeRange(consumer, requests_topic(lane), max(0, accepted_at - before), accepted_at + after)
            found = _scan(around, tenant, notification_id, deadline)
            if found is not None:
                return Original(found, lane)
        return None
    finally:
        consumer.close()


def _scan(around: TimeRange, tenant: str, notification_id: str, deadline: float) -> NotificationRequest | None:
    needle = notification_id.encode()
    read = 0
    for records in around:
        for record in records:
            # A record holds the id as text: most records need not be decoded.
            if record.value is not None and needle in record.value:
                found = _matching(record, tenant, notification_id)
                if found is not None:
                    return found
        read += len(records)
        if system_monotonic() > deadline or read > MAX_RECORDS:
            raise UnavailableError("there is too much around the request's time to find it now; try again later")
    return None


def _matching(record: ConsumerRecord, tenant: str, notification_id: str) -> NotificationRequest | None:
    try:
        request = cast(NotificationRequest, codec("NotificationRequest").decode(record.value))
    except DecodeError:
        return None
    mine = request["tenant"] == tenant and request["notification_id"] == notification_id
    return request if mine else None
