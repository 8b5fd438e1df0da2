"""What a provider is to the worker: one method, one result, at most one provider request.

May import schemas. Never: a provider, a retry, Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from schemas.events import ChannelMessage

OPTED_OUT = "opted out at the provider"
"""What a fact's detail adds to the code of such a refusal."""


class ErrorClass(StrEnum):
    """How to react to what a provider said; every provider maps its codes to these in one table."""

    PERMANENT_RECIPIENT = "permanent_recipient"
    PERMANENT_MESSAGE = "permanent_message"
    THROTTLED = "throttled"
    TRANSIENT = "transient"
    IN_DOUBT = "in_doubt"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider took it."""

    provider_message_id: str | None = None
    detail: str | None = field(default=None, compare=False)
    """What a person may want to know of how it went out, in our own words."""
    reference: str | None = field(default=None, compare=False)
    """What the vendor calls the message in its reports, where those bring nothing of ours back (runtime/references.py)."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Definitely not sent; another attempt may succeed."""

    error: ErrorClass
    code: str
    retry_after_s: float | None = None
    account_wide: bool = field(default=True, compare=False)
    """False when it is about this recipient alone (asked too often, greylisted): the account need not slow down or rest."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Definitely not sent, and no attempt ever will be."""

    error: ErrorClass
    code: str
    opted_out: bool = False
    """The recipient sent STOP to the provider."""
    invalid_since: int | None = None
    """Since when the address is invalid, where the provider says so (milliseconds since 1970)."""


@dataclass(frozen=True, slots=True)
class InDoubt:
    """The request was written and the answer was lost or made no sense: it may have been sent."""

    code: str
    retry_after_s: float | None = field(default=None, compare=False)
    """What the provider asked for, where its answer arrived but does not say whether it sent."""
    account_wide: bool = field(default=True, compare=False)
    """As of Retry."""
    reference: str | None = field(default=None, compare=False)
    """As that of Sent."""
    looked_up: bool = False
    """The provider was asked after the message, and did not say that it has it: asking again says no more."""


SendResult = Sent | Retry | Rejected | InDoubt


@dataclass(frozen=True, slots=True)
class ProbeRefusal:
    """Why a vendor does not serve an account now; `error` is ACCOUNT where only its settings, or the vendor's, mend that."""

    error: ErrorClass
    code: str


class Doubt(NamedTuple):
    """A message that its provider may have, to be asked after: `Sender.look_up`."""

    message_id: str
    since: int
    """No later than the first request that is in doubt (ms since 1970)."""
    address: str | None = None
    """Whom it is for, and its text: None where the asker does not have them."""
    text: str | None = None


NOT_FOUND = InDoubt("the provider does not show it, which proves nothing", account_wide=False, looked_up=True)
CANNOT_ASK = InDoubt("the provider cannot be asked after it", account_wide=False, looked_up=True)


class Sender(Protocol):
    """One provider account. `send` makes at most one provider request and never raises for what a provider does."""

    name: str
    channel: str
    max_in_flight: int
    rate_per_second: float | None
    platforms: frozenset[str] | None
    """Of a push channel: the devices it reaches; None where a channel has one kind of address."""
    repeatable_s: float
    """How long the vendor recognises a message that comes again by its id, so that it makes nothing of it; 0 where it does not."""
    reconcile_after_s: float | None
    """How long after a request the vendor can be asked whether it has the message; None where it is not to be asked."""

    async def start(self) -> None:
        """Open what is kept open. Raises SettingsError when the account's settings cannot work."""

    async def send(self, message: ChannelMessage) -> SendResult:
        """Send one message."""
        ...

    async def look_up(self, doubt: Doubt) -> SendResult:
        """Ask whether the provider has a message: one request, which sends nothing.

        Sent: it has it. Rejected: it has it, and did not send it. Retry: to be asked again. InDoubt: it does not show it, or cannot
        be asked. What goes wrong here is never about the account as a whole.
        """
        ...

    async def close(self) -> None:
        """Close it."""


def classify(
    error: ErrorClass,
    code: str,
    retry_after_s: float | None = None,
    *,
    account_wide: bool = True,
    opted_out: bool = False,
) -> SendResult:
    """The result an error class asks for."""
    if error is ErrorClass.IN_DOUBT:
        return InDoubt(code, retry_after_s)
    if error in (ErrorClass.PERMANENT_RECIPIENT, ErrorClass.PERMANENT_MESSAGE):
        return Rejected(error, code, opted_out)
    return Retry(error, code, retry_after_s, account_wide)
