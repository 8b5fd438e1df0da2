"""`heliograph replay --what-if --provider`: which of the selected messages an account could take, and at what price; pure.

    | the message                                  | the account NAME                                   |
    |----------------------------------------------|----------------------------------------------------|
    | went through it                              | same_account                                       |
    | is of another channel                        | not_reachable                                      |
    | is for a device of a platform it serves      | taken                                              |
    | is for a device of another platform          | not_reachable                                      |
    | is for a device that is in no profile today  | as the account it went through, unknown without it |
    | of the other version cannot be rendered      | not_rendered                                       |

Prices are those of the settings, a message counted once; what was really charged is in v_provider_scorecard.
May import the registry of the senders, for what a kind serves. Never: a sender, a store, Kafka.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from replay.plan import StoredMessage
from replay.times import UsageError
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from vendors.registry import platforms_of

_DECIDED_AGAINST = frozenset({"suppressed", "cancelled", "simulated", "expired"})
"""States that a rendering for comparison does not ask about: no account would have had the message."""
MAX_SHOWN = 20
"""Messages on the screen; --json has them all."""


class AccountMatch(StrEnum):
    """What the account is to a message; in the order they are shown in."""

    TAKEN = "taken"
    SAME_ACCOUNT = "same_account"
    NOT_REACHABLE = "not_reachable"
    UNKNOWN = "unknown"
    NOT_RENDERED = "not_rendered"


_COMPARED = (AccountMatch.TAKEN, AccountMatch.SAME_ACCOUNT)


class Rendered(NamedTuple):
    """What counts of a rendered message, without what it says."""

    notification_id: str
    message_id: str
    channel: str
    platform: str | None

    @classmethod
    def of(cls, message: ChannelMessage) -> Rendered:
        return cls(message["notification_id"], message["message_id"], message["channel"], message["platform"])


@dataclass(frozen=True, slots=True)
class Line:
    """One message; `before` is the account it went through, where that is known. Prices are None where none is known."""

    notification_id: str
    message_id: str
    channel: str
    platform: str | None
    state: str
    before: str | None
    verdict: AccountMatch
    why: str
    price_before: Decimal | None
    currency_before: str | None
    price_after: Decimal | None
    currency_after: str | None


@dataclass(slots=True)
class Cost:
    """A sum per currency: they are never added up."""

    amounts: dict[str, Decimal] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    """Messages without a known price."""

    def add(self, price: Decimal | None, currency: str | None) -> None:
        if price is None or currency is None:
            self.unknown += 1
        else:
            self.amounts[currency] = self.amounts.get(currency, Decimal(0)) + price
            self.messages[currency] += 1

    def as_object(self) -> dict[str, Any]:
        found = {c: {"amount": _plain(self.amounts[c]), "messages": self.messages[c]} for c in sorted(self.amounts)}
        return {"by_currency": found, "unknown_price": self.unknown}

    def words(self) -> str:
        parts = [f"{_plain(self.amounts[c])} {c} ({self.messages[c]} messages)" for c in sorted(self.amounts)]
        if self.unknown:
            parts.append(f"{self.unknown} messages of no known price")
        return ", ".join(parts) or "nothing"


class AccountReport:
    """Takes in notification after notification; says what the account would be to their messages."""

    def __init__(self, providers: Sequence[ProviderSettings], name: str) -> None:
        """Raises UsageError for a name that no account has, SettingsError for an account nothing can send with."""
        self._providers = {provider.name: provider for provider in providers}
        if name not in self._providers:
            names = ", ".join(f"{p.name} ({p.channel})" for p in providers) or "none in these settings"
            raise UsageError(f"--provider: there is no account {name!r}; there are: {names}")
        self.account = self._providers[name]
        self._served = platforms_of(self.account)
        self._first = next(provider for provider in providers if provider.channel == self.account.channel)
        self.lines: list[Line] = []
        self.decided_against = 0
        """Messages that were suppressed, cancelled, expired or a dry run: no account had them."""

    def add(
        self,
        rendered: Iterable[Rendered],
        stored_messages: Sequence[StoredMessage],
        *,
        filtered: bool,
        would: Iterable[Rendered] | None = None,
    ) -> None:
        """One notification: its messages as rendered, as ClickHouse has them, and with another version (None: the same)."""
        before = {message.message_id: message for message in rendered}
        after = before if would is None else {message.message_id: message for message in would}
        known = {stored.message_id: stored for stored in stored_messages if stored.message_id is not None}
        whole = next((stored for stored in stored_messages if stored.message_id is None), None)
        for message_id in dict.fromkeys([*before, *after, *known]):
            stored = known.get(message_id, whole)
            message = after.get(message_id) or before.get(message_id)
            if filtered and not (stored and stored.selected):
                continue
            account = stored.provider if stored else ""
            if stored and not account and stored.state in _DECIDED_AGAINST:
                self.decided_against += 1
            elif message is not None:
                fails = message_id not in after
                self._add(message, stored, account or None, self._match(message, account, fails=fails))
            elif account and stored:
                lost = Rendered(stored.notification_id, message_id, stored.channel, None)
                self._add(lost, stored, account, self._match_lost(lost, account))

    def _match(self, message: Rendered, before: str, *, fails: bool) -> tuple[AccountMatch, str]:
        if fails:
            return AccountMatch.NOT_RENDERED, "the other version cannot be rendered"
        if before == self.account.name:
            return AccountMatch.SAME_ACCOUNT, ""
        if message.channel != self.account.channel:
            return AccountMatch.NOT_REACHABLE, "another channel"
        if self._served is None:
            return AccountMatch.TAKEN, ""
        if message.platform is None:
            # As the senders do: without a platform it is one of the first account's kind.
            if self._served == platforms_of(self._first):
                return AccountMatch.TAKEN, ""
            return AccountMatch.NOT_REACHABLE, "no platform given, so the first account's"
        return (
            (AccountMatch.TAKEN, "")
            if message.platform in self._served
            else (AccountMatch.NOT_REACHABLE, "another platform")
        )

    def _match_lost(self, message: Rendered, before: str) -> tuple[AccountMatch, str]:
        """Of a message that went out and would not be rendered today: the platform is that of the account it had."""
        if before == self.account.name or message.channel != self.account.channel or self._served is None:
            return self._match(message, before, fails=False)
        had = self._providers.get(before)
        served = platforms_of(had) if had is not None else None
        if not served:
            return AccountMatch.UNKNOWN, "the device's platform is not known any more"
        if served <= self._served:
            return AccountMatch.TAKEN, ""
        if served & self._served:
            return AccountMatch.UNKNOWN, "the device's platform is not known any more"
        return AccountMatch.NOT_REACHABLE, "another platform"

    def _add(
        self, message: Rendered, stored: StoredMessage | None, before: str | None, verdict: tuple[AccountMatch, str]
    ) -> None:
        had = self._providers.get(before) if before else None
        takes = self.account if verdict[0] in _COMPARED else None
        self.lines.append(
            Line(
                *message,
                stored.state if stored else "",
                before,
                *verdict,
                had.price_per_message if had else None,
                had.currency if had else None,
                takes.price_per_message if takes else None,
                takes.currency if takes else None,
            )
        )

    # -- what it comes to -------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Messages by match."""
        found = Counter(line.verdict for line in self.lines)
        return {match.value: found[match] for match in AccountMatch}

    def costs(self) -> tuple[Cost, Cost]:
        """Before and after, of the same messages: those that the account takes or had."""
        before, after = Cost(), Cost()
        for line in self.lines:
            if line.verdict in _COMPARED:
                before.add(line.price_before, line.currency_before)
                after.add(line.price_after, line.currency_after)
        return before, after

    def as_object(self) -> dict[str, Any]:
        """For programs: every message."""
        before, after = self.costs()
        return {
            "account": self.account.name,
            "channel": self.account.channel,
            **self.counts(),
            "decided_against": self.decided_against,
            "cost_before": before.as_object(),
            "cost_after": after.as_object(),
            "messages": [_described(line) for line in self.lines],
        }

    def text(self) -> Iterator[str]:
        """For people: some messages, then the sums."""
        order = list(AccountMatch)
        shown = sorted(self.lines, key=lambda line: order.index(line.verdict))[:MAX_SHOWN]
        yield from (self._sentence(line) for line in shown)
        if len(self.lines) > len(shown):
            yield f"... and {len(self.lines) - len(shown)} more; --json shows them all"
        counts, (before, after) = self.counts(), self.costs()
        reasons = Counter(line.why for line in self.lines if line.verdict is AccountMatch.NOT_REACHABLE)
        why = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        parts = [
            f"{counts['taken']} taken",
            f"{counts['same_account']} went through it already",
            f"{counts['not_reachable']} not reachable{f' ({why})' if why else ''}",
        ]
        if counts["unknown"]:
            parts.append(f"{counts['unknown']} of devices whose platform is not known any more")
        if counts["not_rendered"]:
            parts.append(f"{counts['not_rendered']} cannot be rendered with the other version")
        if self.decided_against:
            parts.append(f"{self.decided_against} left out: suppressed, cancelled, expired or a dry run")
        yield f"With account {self.account.name}: {', '.join(parts)}."
        yield f"Cost of those it takes or had, at the prices of the settings: before {before.words()}; after {after.words()}."
        yield "What a message says does not depend on the account."

    def _sentence(self, line: Line) -> str:
        what = f"{line.channel} ({line.platform})" if line.platform else line.channel
        began = f"{line.notification_id} {what}: {line.before or 'no account known'}"
        if line.verdict not in _COMPARED:
            return f"{began}, {line.verdict.replace('_', ' ')} ({line.why})"
        prices = f"{_price(line.price_before, line.currency_before)} -> {_price(line.price_after, line.currency_after)}"
        if line.verdict is AccountMatch.SAME_ACCOUNT:
            return f"{began}, the same account ({_price(line.price_after, line.currency_after)})"
        return f"{began} -> {self.account.name} ({prices})"


def _described(line: Line) -> dict[str, Any]:
    found = {name: getattr(line, name) for name in Line.__slots__}
    return {name: _plain(value) if isinstance(value, Decimal) else value for name, value in found.items()}


def _price(price: Decimal | None, currency: str | None) -> str:
    return "no known price" if price is None else f"{_plain(price)} {currency}"


def _plain(amount: Decimal) -> str:
    """Without an exponent: 0.0000001 is no 1E-7 to a reader of prices."""
    return format(amount, "f")
