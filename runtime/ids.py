"""Identity: every id is a pure function of its cause (design: docs/architecture.md, "Identity").

May import schemas.channels. Never: a clock read, a store.
"""

from __future__ import annotations

import hashlib
import os
import re
from uuid import UUID

from schemas.channels import ROWS

_NIL = bytes(16)
_CANONICAL = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_FOLDS_CASE = frozenset(row.name for row in ROWS.values() if row.shape.folds_case)

MAX_GENERATIONS = 32
"""A report does not say which resend it is of; of more resends than this of one notification none is found."""


def notification_id(accepted_at_ms: int, tenant: str, idempotency_key: str | None = None) -> str:
    """A UUIDv7 (RFC 9562 §5.7) whose timestamp is `accepted_at_ms`.

    The other bits are random, or SHA-256(tenant NUL key) when a key is given: the same tenant, key and time give the
    same id. Raises ValueError when the time does not fit into 48 bits.
    """
    if not 0 <= accepted_at_ms < 1 << 48:
        raise ValueError(f"accepted_at {accepted_at_ms} is not a time in milliseconds since 1970")
    if idempotency_key is None:
        rest = os.urandom(10)
    else:
        rest = hashlib.sha256(f"{tenant}\0{idempotency_key}".encode()).digest()[:10]
    digits = rest.hex()
    return _text_of(f"{accepted_at_ms:012x}7{digits[1:4]}{_VARIANT[digits[4]]}{digits[5:]}")


def accepted_at(notification_id: str) -> int:
    """The time in a notification id, in milliseconds. Raises ValueError when it is not a UUIDv7."""
    text = canonical(notification_id)
    if text[14] != "7" or text[19] not in "89ab":
        raise ValueError("a notification id is a UUIDv7")
    return int(text[:8] + text[9:13], 16)


def is_canonical(notification_id: str) -> bool:
    """Whether an id is written as we write it: five groups of lower-case digits."""
    return _CANONICAL(notification_id) is not None


def canonical(text: str) -> str:
    """A UUID in any form that UUID() reads, as we write it. Raises ValueError."""
    return text if _CANONICAL(text) else str(UUID(text))


def bytes_of(text: str) -> bytes:
    """The 16 bytes of a UUID in any form that UUID() reads. Raises ValueError."""
    return bytes.fromhex(text.replace("-", "")) if _CANONICAL(text) else UUID(text).bytes


def text_of_bytes(raw: bytes) -> str:
    """The UUID of 16 bytes as we write it. Raises ValueError for another number of them."""
    if len(raw) != 16:
        raise ValueError("a UUID has 16 bytes")
    return _text_of(raw.hex())


def _text_of(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"


def _named(namespace: bytes, name: str) -> str:
    """A UUIDv5 (RFC 9562 §5.5), as `uuid5` makes it, without an object for each."""
    digits = hashlib.sha1(namespace + name.encode(), usedforsecurity=False).hexdigest()
    return _text_of(f"{digits[:12]}5{digits[13:16]}{_VARIANT[digits[16]]}{digits[17:32]}")


def message_id(notification_id: str, channel: str, fingerprint: str, generation: int = 0) -> str:
    """Id of the message to one address; `fingerprint` is "" where no address was found."""
    return _named(bytes_of(notification_id), f"{channel}:{fingerprint}:{generation}")


def is_message_of(message: str, notification: str, channel: str, fingerprint: str) -> bool:
    """Whether a message is that of a notification to the address of that fingerprint, of whichever of the first MAX_GENERATIONS."""
    return any(
        message_id(notification, channel, fingerprint, generation) == message for generation in range(MAX_GENERATIONS)
    )


def event_id(subject_id: str, state: str, attempt: int = 0, provider_event_id: str = "") -> str:
    """Id of a fact; `subject_id` is the message id, or the notification id where no message exists."""
    return _named(bytes_of(subject_id), f"{state}:{attempt}:{provider_event_id}")


def hook_id(endpoint_id: str, event_id: str) -> str:
    """Id under which an endpoint is told a fact, however often."""
    return _named(bytes_of(endpoint_id), event_id)


def receipt_id(provider: str, provider_message_id: str, provider_event_id: str) -> str:
    """Id of a provider's report: a repetition gets the same id."""
    return _named(_NIL, f"receipt:{provider}:{provider_message_id}:{provider_event_id}")


def timer_id(subject_id: str, purpose: str, attempt: int = 0) -> str:
    """Id of a timer."""
    return _named(bytes_of(subject_id), f"timer:{purpose}:{attempt}")


def dead_letter_id(
    topic: str, partition: int, offset: int, timestamp: int, key: bytes | None, value: bytes | None
) -> str:
    """Id of a dead letter: a record has one, whichever stage dead-letters it and however often.

    A topic that was deleted and created again counts from 0 again: time (ms) and bytes distinguish its records from the old ones.
    """
    # Beyond 2^53 ms not every reader has the time to the millisecond.
    time = timestamp if 0 <= timestamp < 1 << 53 else -1
    digest = hashlib.sha256(f"{len(key or b'')}:".encode() + (key or b"") + (value or b"")).hexdigest()
    return _named(_NIL, f"{topic}:{partition}:{offset}:{time}:{digest}")


def normal_address(channel: str, value: str) -> str:
    """The form of an address that is compared: e-mail in lower case, numbers and tokens as they are."""
    return value.strip().lower() if channel in _FOLDS_CASE else value.strip()


def address_hash(channel: str, value: str) -> str:
    """Fingerprint of an address: 32 hex digits of SHA-256 over channel and normal form."""
    return hashlib.sha256(f"{channel}:{normal_address(channel, value)}".encode()).hexdigest()[:32]


def recipient(user_id: str | None, channel: str | None = None, address: str | None = None) -> str:
    """The recipient part of a key: the user id, else `addr:` and the address hash."""
    if user_id:
        return user_id
    if channel is None or address is None:
        raise ValueError("a recipient is a user id or an address")
    return f"addr:{address_hash(channel, address)}"


def request_key(tenant: str, user_id: str | None, addresses: list[tuple[str, str]]) -> bytes:
    """Kafka key `tenant:recipient` of a request; `addresses` are (channel, value), the first one counts."""
    channel, value = addresses[0] if addresses else (None, None)
    return f"{tenant}:{recipient(user_id, channel, value)}".encode()
