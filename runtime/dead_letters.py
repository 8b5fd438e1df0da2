"""Dead letters: a record that cannot be processed is kept whole, with the reason, before its offset is committed.

May import schemas. What never enters here: a decision to give up (the stage takes it), a Kafka client.
"""

from __future__ import annotations

from runtime import ids
from runtime.logs import redact_text
from runtime.metrics import DEAD_LETTERS as COUNTER
from runtime.records import InRecord, OutRecord
from schemas.codec import codec
from schemas.events import DeadLetter
from schemas.topics import DEAD_LETTERS

UNDECODABLE = "undecodable"
INTERNAL_ERROR = "internal_error"


def dead_letter(
    record: InRecord, *, stage: str, reason: str, error: BaseException, now: int, attempts: int = 1,
    tenant: str | None = None, notification_id: str | None = None, message_id: str | None = None,
) -> OutRecord:  # fmt: skip
    """The record for notify.deadletters.v1. Publish it and wait for the acknowledgement before going on."""
    COUNTER.labels(stage, reason).inc()
    letter: DeadLetter = {
        "dead_letter_id": ids.dead_letter_id(stage, record.topic, record.partition, record.offset),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "key": record.key,
        "value": record.value,
        "headers": [{"name": name, "value": value or b""} for name, value in record.headers],
        "stage": stage,
        "reason": reason,
        "error_class": type(error).__name__,
        "detail": redact_text(str(error))[:500],
        "attempts": attempts,
        "tenant": tenant,
        "notification_id": notification_id,
        "message_id": message_id,
        "occurred_at": now,
    }
    return OutRecord(DEAD_LETTERS, record.key, codec("DeadLetter").encode(letter))
