"""The copies that a replay publishes, and the fact that says so; pure.

A copy carries the replay's id: by it the senders' ledger lets a message that ended unsent be tried again. The ids stay, so
that a copy published twice is one message; a resend has the next generation, and so new ids.
May import schemas and runtime values. Never: a decision, a store, a clock read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from replay.plan import Item
from replay.template import TemplateVersion
from runtime import ids
from runtime.dead_letters import REDRIVEN, redriven
from runtime.records import ConsumerRecord, Headers, ProducerRecord
from runtime.status import message_status, request_status, source_of, status_record, traceparent_of
from schemas.codec import DecodeError, codec
from schemas.events import ChannelMessage, DeliveryStatus, NotificationRequest
from schemas.topics import catalogue, lane_of


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a replay writes on everything it does."""

    replay_id: str
    by: str
    resend: bool
    now: int
    template: TemplateVersion | None = None

    @property
    def words(self) -> str:
        return f"{'resend' if self.resend else 'replay'} {self.replay_id} by {self.by}"


def copies(record: ConsumerRecord, item: Item, stamp: Stamp) -> list[ProducerRecord]:
    """The record again, with the id of the letter it was in, and the event on its timeline. Raises DecodeError."""
    if item.dead_letter_id is not None:
        header = redriven(item.dead_letter_id, item.position.offset)
        record = record._replace(headers=[*(h for h in record.headers if h[0] != REDRIVEN), header])
    if catalogue()[record.topic].record == "ChannelMessage":
        return _message_again(record, item, stamp)
    return _request_again(record, item, stamp)


def _request_again(record: ConsumerRecord, item: Item, stamp: Stamp) -> list[ProducerRecord]:
    request = cast(NotificationRequest, codec("NotificationRequest").decode(record.value))
    request = {**request, "replay": stamp.replay_id, "generation": item.generation}
    if item.channels:
        request["channels"] = list(item.channels)
    words = stamp.words
    if stamp.template is not None and request.get("template_id") == stamp.template.template_id:
        named = request.get("template_version")
        words += f", rendered with {stamp.template}" + (f" instead of version {named}" if named is not None else "")
        request["template_version"] = stamp.template.version
    lane, source = lane_of(record.topic), source_of(record)
    status = request_status(request, lane, "replayed", now=stamp.now, detail=words, source=source)
    value = codec("NotificationRequest").encode(request)
    return [
        ProducerRecord(record.topic, record.key, value, record.headers, record.partition),
        _event(status, record, stamp),
    ]


def _message_again(record: ConsumerRecord, item: Item, stamp: Stamp) -> list[ProducerRecord]:
    message = cast(ChannelMessage, codec("ChannelMessage").decode(record.value))
    # The ledger knows the attempt to go on with; where it has forgotten the message, the item does.
    message = {
        **message,
        "replay": stamp.replay_id,
        "attempt": max(1, item.attempt),
        "retries": 0,
        "provider": None,
        "possible_duplicate": item.possible_duplicate,
    }
    if item.generation != message["generation"]:
        fingerprint = ids.address_hash(message["channel"], message["address"])
        message = {
            **message,
            "generation": item.generation,
            "attempt": 1,
            "possible_duplicate": False,
            "message_id": ids.message_id(message["notification_id"], message["channel"], fingerprint, item.generation),
        }
    status = message_status(message, "replayed", now=stamp.now, attempt=0, detail=stamp.words, source=source_of(record))
    value = codec("ChannelMessage").encode(message)
    headers = _with_id(record.headers, message["message_id"])
    # The same partition: the ledger lies beside it.
    return [ProducerRecord(record.topic, record.key, value, headers, record.partition), _event(status, record, stamp)]


def _with_id(headers: Headers, message_id: str) -> Headers:
    return [("ce_id", message_id.encode()), *((name, value) for name, value in headers if name != "ce_id")]


def _event(status: DeliveryStatus, record: ConsumerRecord, stamp: Stamp) -> ProducerRecord:
    subject = status["message_id"] or status["notification_id"]
    return status_record(
        {**status, "event_id": ids.event_id(subject, "replayed", 0, stamp.replay_id)}, traceparent_of(record.headers)
    )


def decoded_request(value: bytes | None) -> NotificationRequest | None:
    """The request, None for bytes that are none or carry no usable id."""
    try:
        request = cast(NotificationRequest, codec("NotificationRequest").decode(value))
        ids.accepted_at(request["notification_id"])
    except (DecodeError, ValueError):
        return None
    return request


def decoded_message(value: bytes | None) -> ChannelMessage | None:
    """The rendered message, None for bytes that are none or carry no usable ids."""
    try:
        message = cast(ChannelMessage, codec("ChannelMessage").decode(value))
        ids.accepted_at(message["notification_id"])
        ids.event_id(message["message_id"], "")
    except (DecodeError, ValueError):
        return None
    return message
