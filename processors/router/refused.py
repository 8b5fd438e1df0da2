"""What is published in place of a record that Kafka refuses for its size: a rejection, or a smaller dead letter; pure.

Our own limits hold before anything is published (schemas/topics.py), so this is for a topic whose limit an operator has
lowered. Kafka would refuse the record again each time: it gets an outcome instead of ending the process.
May import runtime values and schemas. Never: a Kafka client, a decision about anything that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from runtime.dead_letters import smaller
from runtime.errors import PublishError
from runtime.records import ProducerRecord
from runtime.status import message_status, request_status, status_record, traceparent_of, without_names
from schemas.codec import codec
from schemas.events import ChannelMessage, DeliveryStatus, NotificationRequest, Timer
from schemas.topics import DEAD_LETTERS, STATUS, TIMERS, catalogue, lane_of

ROUNDS = 8
"""A dead letter is cut to a quarter each time."""


def instead(refused: Sequence[ProducerRecord], now: int) -> list[ProducerRecord]:
    """The records to publish instead. Raises PublishError for one that cannot be made smaller: the router stops rather than lose it."""
    return [_instead(record, now) for record in refused]


def _instead(record: ProducerRecord, now: int) -> ProducerRecord:
    detail = f"{record.topic} takes no record of {len(record.key or b'') + len(record.value or b''):,} bytes"
    if record.topic == DEAD_LETTERS:
        dead_letter = smaller(record)
        if dead_letter is not None:
            return dead_letter
    elif record.topic == STATUS:
        status = cast(DeliveryStatus, codec("DeliveryStatus").decode(record.value))
        if (bare := without_names(status)) != status:
            return status_record(bare)
    elif record.topic == TIMERS:
        timer = cast(Timer, codec("Timer").decode(record.value))
        request = cast(NotificationRequest, codec("NotificationRequest").decode(timer["value"]))
        lane = lane_of(timer["topic"])
        status = request_status(request, lane, "rejected", now=now, reason="template_error", detail=detail)
        return status_record(status, traceparent_of([(h["name"], h["value"]) for h in timer["headers"]]))
    elif catalogue()[record.topic].record == "ChannelMessage":
        message = cast(ChannelMessage, codec("ChannelMessage").decode(record.value))
        status = message_status(message, "rejected", now=now, attempt=0, reason="template_error", detail=detail)
        return status_record(status, traceparent_of(record.headers))
    raise PublishError(f"{detail}, and it cannot be made smaller: raise the topic's max.message.bytes")
