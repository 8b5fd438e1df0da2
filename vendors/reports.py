"""What a vendor's reports.py offers: check that a request is genuine, and read it into reports.

May import runtime's callbacks (what a report is about) and pydantic_core. Never: HTTP answers, Kafka.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from pydantic_core import from_json

from runtime.callbacks import NO_SUBJECT, Subject

CLOCK_SKEW_S = 300.0
"""By which a vendor's clock may differ from ours."""
MAX_BODY = 64 * 1024
MAX_RAW = 256 * 1024
"""Bytes of one report that are kept; a larger one is no report."""
MAX_ID = 255
"""Characters of a vendor's id."""
MAX_WORD = 64
"""Characters of a vendor's code or state."""
MAX_AGE_MS = 30 * 86_400_000
"""An event that is older by the vendor's word happened when it was received: topics and views do not reach further back."""


class Request(NamedTuple):
    """A request as received. `url` begins with the configured public address, because the Host header can be forged."""

    url: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes
    received_at: int = 0
    """Milliseconds since 1970."""
    secret: str = ""
    """What follows the kind in the path."""


class Intake(NamedTuple):
    """How callbacks of a vendor come, and what it wants for an answer."""

    media_types: frozenset[str]
    retry_window_s: float
    """For how long the vendor repeats what was not taken: a signature is good for this, and CLOCK_SKEW_S."""
    max_body: int = MAX_BODY
    taken: int = 204
    """The answer to what was taken."""
    unusable: int | None = None
    """The answer to what is genuine and of no use, where the vendor would repeat it otherwise."""
    takes_secret: bool = False
    """Whether an account may be known by a secret in the path, in place of a signature."""


class Meaning(NamedTuple):
    """What a vendor's event says: a state of ours, and whether a status event is made of it."""

    state: str
    reason: str | None = None
    final: bool = True
    detail: str | None = None
    opted_out: bool = False


NOTED = Meaning("sending", final=False)
"""On the way."""
NEW_WORD = Meaning("unknown", final=False)
"""A word that the vendor may have added since."""
LOST = Meaning("undelivered", "carrier")
OPTED_OUT = Meaning("undelivered", "carrier", opted_out=True)
"""The vendor did not try: the recipient had told it so. It comes after `sent`, so it is never `suppressed`, which ranks below."""


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What a genuine request says about one message."""

    provider: str
    provider_message_id: str
    provider_event_id: str
    """Equal for repetitions of the same report."""
    channel: str
    state: str
    """A word of schemas/reasons.yaml."""
    reason: str | None = None
    code: str | None = None
    detail: str | None = None
    final: bool = True
    """False for intermediate states: kept as a receipt, no status event is made."""
    address: str | None = None
    """Whom the message went to; only its fingerprint leaves this process."""
    opted_out: bool = False
    """The recipient sent STOP to the vendor, or is on its list of those who did."""
    subject: Subject = NO_SUBJECT
    """What it is about."""
    occurred_at: int | None = None
    """Milliseconds since 1970 by the vendor's clock, None where it does not say."""
    raw: bytes | None = None
    """Its part of the body, None where it is the whole of it."""
    reference: str | None = None
    """What the vendor calls the message, where that has to be looked up (runtime/references.py)."""
    known_by: int = 0
    """By when (ms since 1970) the sender has written what the reference stands for: until then the report is to come again."""


class Reports(NamedTuple):
    """What a genuine request says."""

    reports: Sequence[DeliveryReport]
    unreadable: int = 0
    """Reports beside them that cannot be read, and are passed over."""
    nonce: str | None = None
    """What the vendor signs once, where its signature does not cover the body: good for one body."""


class MalformedError(Exception):
    """The request cannot be read; says why, without quoting it."""


class UnknownAccountError(Exception):
    """No configured account is the one the request speaks for."""


class ForgedError(Exception):
    """The request is not signed by the account it speaks for."""


class StaleError(Exception):
    """The request is signed, and older than the vendor's last repetition of anything."""


class NotNowError(Exception):
    """Whether the request is genuine cannot be found out now: it is to come again."""


class ReportReader(Protocol):
    """The delivery reports of one kind of provider."""

    intake: Intake

    async def read(self, request: Request) -> Reports:
        """The reports. Raises MalformedError, UnknownAccountError, ForgedError, StaleError, NotNowError."""


def parse_json(body: bytes) -> Any:
    """The body as JSON. Raises MalformedError."""
    try:
        return from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as exc:
        raise MalformedError("the body is not valid JSON") from exc


def decoded_signature(text: str) -> bytes:
    """The bytes of a signature in base64, which has one spelling. Raises ForgedError for what is none."""
    try:
        signature = b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one
        raise ForgedError from None
    if b64encode(signature).decode() != text:
        raise ForgedError
    return signature


def check_age(signed_at_s: str, intake: Intake, received_at: int) -> None:
    """Of a time that is part of what was signed, in seconds since 1970. Raises MalformedError, StaleError."""
    if not (signed_at_s.isascii() and signed_at_s.isdigit() and len(signed_at_s) <= 12):
        raise MalformedError("the time of the signature is not a number of seconds")
    age_s = received_at / 1000 - int(signed_at_s)
    if not -CLOCK_SKEW_S <= age_s <= intake.retry_window_s + CLOCK_SKEW_S:
        raise StaleError


def event_time(seconds: object, received_at: int) -> int | None:
    """A vendor's time of an event (s since 1970, a number or its digits) in milliseconds; None for one that cannot be."""
    if isinstance(seconds, str):
        try:
            seconds = float(seconds) if len(seconds) <= 20 else None
        except ValueError:
            return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    if not received_at - MAX_AGE_MS <= seconds * 1000 <= received_at + CLOCK_SKEW_S * 1000:
        return None
    return min(int(seconds * 1000), received_at)


def iso_time(text: object, received_at: int) -> int | None:
    """As event_time, of a time as RFC 3339 and the like write it; UTC where it names no zone."""
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return event_time(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp(), received_at)


def word(value: object, most: int = MAX_WORD) -> str | None:
    """A vendor's word: printable ASCII of at most `most` characters; None for anything else."""
    return (
        value if isinstance(value, str) and 0 < len(value) <= most and value.isascii() and value.isprintable() else None
    )


def account_of(subject: Subject, speakers: Sequence[str]) -> str:
    """The account that sent a message, where it is one of those that the request speaks for; else the first of them."""
    named = subject.provider
    return named if named is not None and named in speakers else speakers[0]


REFERENCE_S = 60.0
"""From a message's event to the time at which its reference is there for certain."""


def known_by(occurred_at: int | None) -> int:
    """DeliveryReport.known_by of an event; long past for one without a time."""
    return (occurred_at or 0) + int(REFERENCE_S * 1000)


def spoken_for(secrets: Sequence[tuple[str, str]], request: Request) -> list[str]:
    """Names of the accounts, of (name, secret), whose secret is in the path. Raises UnknownAccountError, ForgedError."""
    if not secrets:
        raise UnknownAccountError
    given = request.secret.encode()
    names = [name for name, secret in secrets if hmac.compare_digest(secret.encode(), given)]
    if not names:
        raise ForgedError
    return names


def stop(provider: str, incoming_id: str, channel: str, number: str, occurred_at: int | None) -> DeliveryReport:
    """The report of an incoming message that says STOP: about a number, and none of our messages. What it says else is not kept."""
    return DeliveryReport(
        provider,
        incoming_id,
        f"{incoming_id}:stop",
        channel,
        "unsubscribed",
        address=number,
        opted_out=True,
        occurred_at=occurred_at,
        raw=b"",
    )
