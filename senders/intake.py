"""Reads a dispatch record: a message, or the reason why it is not one; pure.

Other publishers may write to the topic. Whatever a record holds, it has an outcome of its own:

    | the record                                        | outcome                                           |
    |---------------------------------------------------|---------------------------------------------------|
    | does not decode, its ids cannot be read           | dead letter                                       |
    | does not decode, its ids can be read              | dead letter, `dead_lettered / undecodable`        |
    | decodes, but is on the wrong topic or has values  | `rejected / provider_rejected`, with the fault    |
    |   that cannot be used                             |                                                   |

Only the first two count for the dead-letter brake: many of them mean a wrong producer or schema. A rejected message is the
fault of its tenant alone, however many there are.

Ids are normalised to one spelling: the ledger and the in-flight table would take two spellings for two messages.
May import runtime values and schemas. Never: a decision to send, Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from runtime import ids
from runtime.dead_letters import dead_letter_record
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.status import fact, source_of, status_record, traceparent_of
from schemas.codec import DecodeError, codec
from schemas.events import ChannelMessage

MAX_COUNT = 10_000
"""Attempts and retries: replays continue the count, but no real message reaches this."""
MAX_STATED = 16_384
"""Bytes of what a status repeats of its message. Ours are of 255 characters each; a status is one record as well."""
_STATED = ("tenant", "user_id", "template_id", "correlation_id", "category")
_CUT_AT = 255
_head = codec("ChannelMessage").head_decoder(3)  # message_id, notification_id, tenant


@dataclass(frozen=True, slots=True)
class Head:
    """The ids that say which message the record was meant to be."""

    message_id: str
    notification_id: str
    tenant: str


def read_message(record: ConsumerRecord) -> ChannelMessage:
    """The message of a record. Raises DecodeError."""
    message = cast(ChannelMessage, codec("ChannelMessage").decode(record.value))
    message["message_id"], message["notification_id"] = _ids(message)
    return message


def _read_head(record: ConsumerRecord) -> Head | None:
    """Whose message a record was to be, None where not even that can be read."""
    try:
        head = _head(record.value)
        message_id, notification_id = _ids(head)
    except DecodeError:
        return None
    return Head(message_id, notification_id, head["tenant"][:_CUT_AT])


def _ids(record: Mapping[str, Any]) -> tuple[str, str]:
    try:
        return ids.canonical(record["message_id"]), ids.canonical(record["notification_id"])
    except ValueError as exc:
        raise DecodeError("message_id or notification_id is no UUID") from exc


def unfit(message: ChannelMessage, channel: str, lane: str) -> str | None:
    """Why a message of the topic of this channel and lane cannot be gone on with, in words; None for one that can."""
    if (message["channel"], message["lane"]) != (channel, lane):
        return "channel or lane is not the topic's"
    if not 1 <= message["attempt"] <= MAX_COUNT:
        return f"attempt {message['attempt']} is not in 1..{MAX_COUNT}"
    if not 0 <= message["retries"] <= MAX_COUNT:
        return f"retries {message['retries']} is not in 0..{MAX_COUNT}"
    stated = sum(len(_text(message, field)) for field in _STATED)
    if stated * 4 > MAX_STATED and (size := sum(len(_text(message, field).encode()) for field in _STATED)) > MAX_STATED:
        return f"{', '.join(_STATED)} have {size:,} bytes together, {MAX_STATED:,} are allowed"
    return None


def cut(message: ChannelMessage, channel: str, lane: str) -> ChannelMessage:
    """An unfit message as far as it can be spoken of."""
    made: Any = {
        **message,
        "channel": channel,
        "lane": lane,
        "attempt": min(max(message["attempt"], 1), MAX_COUNT),
        "retries": min(max(message["retries"], 0), MAX_COUNT),
        **{field: held[:_CUT_AT] for field in _STATED if (held := _text(message, field))},
    }
    return cast(ChannelMessage, made)


def _text(message: Mapping[str, Any], field: str) -> str:
    return message[field] or ""


def dead_letter_records(
    record: ConsumerRecord, channel: str, lane: str, *, reason: str, error: BaseException, now: int, in_doubt: bool
) -> list[ProducerRecord]:
    """The dead letter and, where the ids can be read, the fact that the message ends here: it may have been routed long ago."""
    head = _read_head(record)
    if head is None:
        return [dead_letter_record(record, stage="sender", reason=reason, error=error, now=now)]
    dead_letter = dead_letter_record(
        record,
        stage="sender",
        reason=reason,
        error=error,
        now=now,
        tenant=head.tenant,
        notification_id=head.notification_id,
        message_id=head.message_id,
    )
    status = fact(
        ids.event_id(head.message_id, "dead_lettered"),
        head.notification_id,
        head.tenant,
        lane,
        "dead_lettered",
        now,
        {
            "message_id": head.message_id,
            "channel": channel,
            "reason": reason,
            "detail": type(error).__name__,
            "possible_duplicate": in_doubt,
            "source": source_of(record),
        },
    )
    return [dead_letter, status_record(status, traceparent_of(record.headers))]
