"""What a vendor's reports.py offers: check that a request is genuine, and read it into a report.

May import the standard library. Never: HTTP answers, Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Request(NamedTuple):
    """A request as received. `url` begins with the configured public address, because the Host header can be forged."""

    url: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    """By lower-case names."""
    body: bytes


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What a genuine request says."""

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
    """The recipient sent STOP to the vendor."""


class MalformedError(Exception):
    """The request cannot be read; says why, without quoting it."""


class UnknownAccountError(Exception):
    """No configured account is the one the request speaks for."""


class ForgedError(Exception):
    """The request is not signed by the account it speaks for."""


class ReportReader(Protocol):
    """The delivery reports of one kind of provider."""

    content_type: str
    """The media type of its requests."""

    def read(self, request: Request) -> DeliveryReport:
        """The report. Raises MalformedError, UnknownAccountError, ForgedError."""
