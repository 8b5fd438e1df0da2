"""What a replay would do with each record, decided from what is known of its messages; pure.

    | the message is             | without --resend                   | with --resend                |
    |----------------------------|------------------------------------|------------------------------|
    | failed, rejected, expired, | tried again, the same id           | sent as the next generation  |
    |   suppressed, skipped,     |                                    |                              |
    |   dead_lettered            |                                    |                              |
    | sent, delivered, bounced,  | left out: somebody has it, or may  | sent as the next generation  |
    |   undelivered, unknown     |                                    |                              |
    | cancelled, simulated       | left out                           | left out                     |
    | not settled                | left out: on its way               | left out: on its way         |
    | past its expires_at        | left out: it would expire again    | left out                     |
    | not in ClickHouse          | tried: the ledger knows            | left out                     |

May import schemas and runtime values. Never: a store, a clock read, a record's bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from schemas.channels import ROWS
from schemas.events import ChannelMessage, NotificationRequest, states

_NEVER = {"cancelled": "cancelled", "simulated": "dry run"}
SAMPLES = 3


class Decision(StrEnum):
    """What becomes of one message."""

    TRY = "will be tried"
    SEND_AGAIN = "will be sent again"
    SENT = "sent already, not sent again"
    MAYBE_SENT = "may have been sent, not sent again"
    ON_ITS_WAY = "on its way, left alone"
    NEVER = "cancelled or a dry run, left alone"
    EXPIRED = "past its expiry, left alone"
    RESENT = "a later generation exists, left alone"
    UNKNOWN = "not known to ClickHouse yet, left alone"
    REFUSED = "cannot be redriven"

    @property
    def publishes(self) -> bool:
        return self in (Decision.TRY, Decision.SEND_AGAIN)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as ClickHouse has it; message_id None: the notification as a whole, which has no messages."""

    notification_id: str
    message_id: str | None
    channel: str
    state: str
    reason: str = ""
    attempts: int = 0
    template_version: int | None = None
    possible_duplicate: bool = False
    selected: bool = True
    provider: str = ""
    """The account it went through last, "" for none."""


@dataclass(frozen=True, slots=True)
class RecordPosition:
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Item:
    """One record that will be published."""

    position: RecordPosition
    tenant: str
    notification_id: str | None
    message_id: str | None = None
    dead_letter_id: str | None = None
    channels: tuple[str, ...] = ()
    """Of a request: the channels to try, () for those it names."""
    generation: int = 0
    attempt: int = 0
    """Of a message: the attempt it goes on with, where the ledger has forgotten it; 0 for the record's own."""
    possible_duplicate: bool = False
    messages: tuple[str, ...] = ()
    """Ids of the messages that will be tried, as far as they are known."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table shown before anything happens."""

    channel: str
    state: str
    reason: str
    decision: Decision
    note: str = ""


@dataclass(slots=True)
class Plan:
    """Everything a replay would do."""

    items: list[Item] = field(default_factory=list)
    counts: dict[Row, int] = field(default_factory=dict)
    samples: dict[Row, list[str]] = field(default_factory=dict)
    looked_at: int = 0
    unreadable: int = 0
    other_templates: int = 0
    """Requests left out because they use another template than the one to render with."""
    pinned: int = 0
    """Items whose request names another version of that template."""

    def count(self, row: Row, sample: str) -> None:
        self.counts[row] = self.counts.get(row, 0) + 1
        kept = self.samples.setdefault(row, [])
        if len(kept) < SAMPLES:
            kept.append(sample)

    def add(self, decided: tuple[Item | None, Sequence[tuple[StoredMessage, Decision]]]) -> None:
        """Take in what was decided about one record."""
        item, stored_messages = decided
        if item is not None:
            self.items.append(item)
        for stored, decision in stored_messages:
            note = (
                "an attempt is in doubt: it may have arrived"
                if decision.publishes and stored.possible_duplicate
                else ""
            )
            self.count(
                Row(stored.channel, stored.state, stored.reason, decision, note),
                stored.message_id or stored.notification_id,
            )

    def messages(self, *decisions: Decision) -> int:
        """How many messages were decided so."""
        return sum(count for row, count in self.counts.items() if row.decision in decisions)

    def rows(self) -> list[dict[str, Any]]:
        """The table: what will be published first, then the larger counts."""
        ordered = sorted(self.counts.items(), key=lambda it: (not it[0].decision.publishes, -it[1], str(it[0])))
        return [
            {
                "channel": row.channel,
                "state": row.state,
                "reason": row.reason,
                "decision": str(row.decision),
                **({"note": row.note} if any(r.note for r in self.counts) else {}),
                "count": count,
                "samples": self.samples[row],
            }
            for row, count in ordered
        ]

    def summary(self) -> dict[str, int]:
        """Counts by decision."""
        found: dict[str, int] = {}
        for row, count in self.counts.items():
            found[row.decision.name.lower()] = found.get(row.decision.name.lower(), 0) + count
        return found


def _by_state(state: str, resend: bool) -> Decision:
    if state not in states().settled:
        return Decision.ON_ITS_WAY
    if state in _NEVER:
        return Decision.NEVER
    if resend:
        return Decision.SEND_AGAIN
    if state in states().retriable:
        return Decision.TRY
    return Decision.MAYBE_SENT if state == "unknown" else Decision.SENT


def decide_request(
    position: RecordPosition,
    request: NotificationRequest,
    stored_messages: Sequence[StoredMessage],
    *,
    resend: bool,
    filtered: bool,
    now: int,
    known_generation: int = 0,
    dead_letter_id: str | None = None,
) -> tuple[Item | None, list[tuple[StoredMessage, Decision]]]:
    """The item, if there is anything to try, and what becomes of every selected message.

    The unit is a notification's channel: with messages to try on one channel and messages sent on another, the copy names
    the first channel only.
    """
    nid, generation = request["notification_id"], request.get("generation", 0)
    if not stored_messages:
        if filtered:  # a condition over what is not there holds for nothing
            return None, []
        stored_messages = [StoredMessage(nid, None, "", "")]
        decisions = [Decision.UNKNOWN if resend else Decision.TRY]
    else:
        decisions = [_by_state(stored.state, resend) for stored in stored_messages]
    expires_at = request.get("expires_at")
    if generation < known_generation and not resend:
        decisions = [Decision.RESENT if d.publishes else d for d in decisions]
    elif expires_at is not None and expires_at <= now:
        decisions = [Decision.EXPIRED if d.publishes else d for d in decisions]
    elif request.get("dry_run"):
        decisions = [Decision.NEVER if d.publishes else d for d in decisions]
    elif not resend:
        decisions = _not_twice(request, stored_messages, decisions)
    chosen = [(s, d) for s, d in zip(stored_messages, decisions, strict=True) if s.selected]
    to_try = [s for s, d in chosen if d.publishes]
    if not to_try:
        return None, chosen
    channels = {s.channel for s in to_try if s.channel}
    everything = channels == {s.channel for s in stored_messages}
    return Item(
        position,
        request["tenant"],
        nid,
        dead_letter_id=dead_letter_id,
        generation=generation,
        channels=() if everything else tuple(sorted(channels)),
        messages=tuple(s.message_id for s in to_try if s.message_id),
    ), chosen


def _has_one_address(channel: str) -> bool:
    return channel in ROWS and ROWS[channel].one_address


def _not_twice(
    request: NotificationRequest, stored_messages: Sequence[StoredMessage], decisions: list[Decision]
) -> list[Decision]:
    """Beside a message that somebody has or may get, what could reach the same person on the same way is not tried.

    A user has one address and one number: two messages on such a channel are two generations, or an address changed.
    Devices are messages of their own. With first_available one message that went out is enough.
    """
    out = {
        s.channel
        for s, d in zip(stored_messages, decisions, strict=True)
        if not d.publishes and d is not Decision.NEVER
    }
    if not out:
        return decisions
    given = [address["channel"] for address in request.get("addresses", ())]
    closed = {channel for channel in out if _has_one_address(channel) and given.count(channel) <= 1}
    first = request.get("strategy") == "first_available"
    return [
        Decision.SENT if d.publishes and (first or s.channel in closed) else d
        for s, d in zip(stored_messages, decisions, strict=True)
    ]


def decide_message(
    position: RecordPosition,
    message: ChannelMessage,
    stored: StoredMessage | None,
    *,
    resend: bool,
    filtered: bool,
    now: int,
    attempt: int = 0,
    dead_letter_id: str | None = None,
) -> tuple[Item | None, list[tuple[StoredMessage, Decision]]]:
    """The same for a message that was rendered already."""
    if stored is None:
        if filtered:
            return None, []
        stored = StoredMessage(message["notification_id"], message["message_id"], message["channel"], "")
        decision = Decision.UNKNOWN if resend else Decision.TRY
    elif not stored.selected:
        return None, []
    else:
        decision = _by_state(stored.state, resend)
    expires_at = message["expires_at"]
    if decision.publishes and expires_at is not None and expires_at <= now:
        decision = Decision.EXPIRED
    chosen = [(stored, decision)]
    if not decision.publishes:
        return None, chosen
    return Item(
        position,
        message["tenant"],
        message["notification_id"],
        message["message_id"],
        dead_letter_id,
        generation=message["generation"],
        attempt=attempt,
        messages=(message["message_id"],),
        possible_duplicate=message["possible_duplicate"] or stored.possible_duplicate,
    ), chosen


def by_notification(stored_messages: Sequence[StoredMessage]) -> Mapping[str, list[StoredMessage]]:
    """Subjects, grouped."""
    found: dict[str, list[StoredMessage]] = {}
    for stored in stored_messages:
        found.setdefault(stored.notification_id, []).append(stored)
    return found
