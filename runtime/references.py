"""What a vendor calls one of our messages, written by a sender and looked up by its reports: where nothing of ours comes back.

    notify.references.v1   provider:reference → Reference   kept for 7 days

Written with the facts of the attempt, also of one in doubt: whoever takes over a message that was claimed writes them for it. A
report that comes before is asked to come again for a minute.
May import schemas. Never: a vendor's word.
"""

from __future__ import annotations

from typing import Protocol

from runtime.callbacks import Subject, attempt_ref_of
from runtime.records import ProducerRecord
from runtime.stores import Store
from schemas.codec import codec
from schemas.events import ChannelMessage, Reference
from schemas.topics import REFERENCES, retention_s

RETENTION_S = retention_s(REFERENCES) or 0
RETENTION_MS = RETENTION_S * 1_000


class ReferenceView(Protocol):
    """Of notify.references.v1, by key."""

    def get(self, key: str) -> Reference | None: ...


def reference_key(provider: str, reference: str) -> str:
    """The key of a record; a name of an account has no colon."""
    return f"{provider}:{reference}"


def reference_record(
    message: ChannelMessage, provider: str, reference: str, recipient: str | None, now: int
) -> ProducerRecord:
    """The record for notify.references.v1."""
    value: Reference = {
        "provider": provider,
        "reference": reference,
        "message_id": message["message_id"],
        "notification_id": message["notification_id"],
        "tenant": message["tenant"],
        "lane": message["lane"],
        "attempt": message["attempt"],
        "recipient": recipient,
        "recorded_at": now,
    }
    return ProducerRecord(REFERENCES, reference_key(provider, reference).encode(), codec("Reference").encode(value))


def forget_old(store: Store, now: int) -> int:
    """Delete what the topic does not keep any more from a store that does not age by itself; how many that were."""
    oldest, reference = now - RETENTION_MS, codec("Reference")
    forgotten = 0
    for key, value in store.items():
        if reference.decode(value)["recorded_at"] < oldest and store.get(key) == value:
            store.delete(key)
            forgotten += 1
    return forgotten


def subject_of_reference(found: Reference) -> Subject:
    """What a report is about that names it. Other publishers may write any text: see attempt_ref_of."""
    attempt_ref = attempt_ref_of({name: str(value) for name, value in found.items()})
    return Subject(found["message_id"] if attempt_ref else None, attempt_ref, found["provider"], found["recipient"])
