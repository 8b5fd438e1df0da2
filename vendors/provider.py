"""What every provider account's sender has in common: build first, then make the one request, and never raise.

    | what went wrong                            | result                                         |
    |--------------------------------------------|------------------------------------------------|
    | the message cannot be built                | rejected: the provider was not called          |
    | an error no sender knows after that        | in doubt: the provider may have been called    |

A message that one input can make fail therefore costs that message, not the process and everything behind it.
May import runtime's log and the protocol. Never: a provider's format, Kafka.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

from runtime.logs import get_logger
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.sender import CANNOT_ASK, Doubt, ErrorClass, InDoubt, ProbeRefusal, Rejected, SendResult, Sent

log = get_logger("sender")

MAX_PROVIDER_ID = 255
"""Longest id of a message that is kept, in characters: providers' ids are shorter."""
MAX_CODE = 200
"""Characters of a code; more is a provider's prose."""

Prepared = TypeVar("Prepared")


class UnsendableError(ValueError):
    """No request can be made of this message, now or later; says why without quoting it."""


class ProviderAccount(ABC, Generic[Prepared]):
    """One account. A provider's module says how a message becomes a request (`prepare`) and how it is made (`deliver`)."""

    channel: ClassVar[str]
    platforms: ClassVar[frozenset[str] | None] = None
    repeatable_s: ClassVar[float] = 0.0
    shows_after_s: ClassVar[float | None] = None
    """After so long the vendor shows a message that it took, as a rule; None where it cannot be asked after one."""

    def __init__(self, provider: ProviderSettings) -> None:
        self.name = provider.name
        self.max_in_flight = provider.max_in_flight
        self.rate_per_second = provider.rate_per_second
        self.reconcile_after_s = self.shows_after_s if provider.reconcile else None

    @abstractmethod
    async def start(self) -> None:
        """Open what is kept open. Raises SettingsError when the account's settings cannot work."""

    @abstractmethod
    async def close(self) -> None:
        """Close it."""

    @abstractmethod
    def prepare(self, message: ChannelMessage) -> Prepared:
        """Build what is sent; opens nothing. Raises UnsendableError for a message that can never be sent."""

    @abstractmethod
    async def deliver(self, prepared: Prepared) -> SendResult:
        """Make at most one provider request."""

    def doubts(self) -> list[str]:
        """What of its settings can hardly be right, as far as that is known without asking anybody; in words."""
        return []

    def detail(self, message: ChannelMessage) -> str | None:
        """What is recorded with a message that was sent, beside its id."""
        return None

    @abstractmethod
    async def probe(self) -> ProbeRefusal | None:
        """Ask the vendor something cheap that needs this account's credentials and sends nothing; None when it answers well."""

    def reference(self, message: ChannelMessage, provider_message_id: str | None) -> str | None:
        """What the vendor's reports call this message; None where they bring the token back, or where it is not known."""
        return None

    async def look_up(self, doubt: Doubt) -> SendResult:
        """See Sender. For a vendor that cannot be asked."""
        return CANNOT_ASK

    async def send(self, message: ChannelMessage) -> SendResult:
        """Send one message; never raises for what a message or a provider holds."""
        try:
            prepared = self.prepare(message)
        except UnsendableError as exc:
            return bounded(Rejected(ErrorClass.PERMANENT_MESSAGE, str(exc)))
        except Exception as exc:
            log.exception("message cannot be built", provider=self.name, notification_id=message["notification_id"])
            return Rejected(ErrorClass.PERMANENT_MESSAGE, f"the message cannot be built ({type(exc).__name__})")
        try:
            result = bounded(await self.deliver(prepared))
            if isinstance(result, Sent):
                reference, detail = self.reference(message, result.provider_message_id), self.detail(message)
                return result if reference is detail is None else replace(result, reference=reference, detail=detail)
            return replace(result, reference=self.reference(message, None)) if isinstance(result, InDoubt) else result
        except Exception as exc:
            log.exception("send failed", provider=self.name, notification_id=message["notification_id"])
            return InDoubt(f"an error the sender does not know ({type(exc).__name__})")


def bounded(result: SendResult) -> SendResult:
    """The result with what a provider chose cut to what our records hold: it may answer anything."""
    if not isinstance(result, Sent):
        return result if len(result.code) <= MAX_CODE else replace(result, code=result.code[:MAX_CODE])
    given: object = result.provider_message_id
    usable = isinstance(given, str) and len(given) <= MAX_PROVIDER_ID and given.isascii() and given.isprintable()
    return result if usable else Sent(None)
