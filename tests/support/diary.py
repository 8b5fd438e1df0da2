"""What happened, as its maker knows it, and what it answers to the questions of docs/analytics.md: Python over lists, no SQL.

A diary is kept by a made-up shop (history.py) and by a campaign on a whole stack (tests/e2e/campaign.py). Answers are rows, in the order
that the question asks for; where it leaves the order open, and where it stops after some rows, the tests compare all rows without order.
May import schemas. Never: a store, SQL.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from schemas.events import states

HOUR, DAY = 3_600_000, 86_400_000
Answer = list[tuple[Any, ...]]
_ASKING = {"sent", "retrying", "failed_over", "rejected", "failed", "unknown"}
_NOT_WANTED = {"skipped", "suppressed", "expired", "cancelled"}
_FAILED = {"undelivered", "bounced", "rejected", "failed", "dead_lettered"}
_WORDS = {
    "hard_bounce": "Refused by the receiving side: the address does not exist",
    "opted_out": "Not sent: the recipient has opted out",
    "suppressed_address": "Not sent: the address is on the suppression list",
    "unknown_recipient": "Cannot be sent: the recipient is unknown",
    "carrier": "The carrier gave up: it could not be delivered",
    "retries_exhausted": "The provider did not take it: every attempt failed",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A status event; times in milliseconds."""

    event_id: str
    channel: str
    state: str
    at: int
    attempt: int = 0
    provider: str = ""
    provider_message_id: str = ""
    code: str = ""
    reason: str = ""
    latency_ms: int | None = None
    flagged: bool = False

    @property
    def rank(self) -> int:
        """Its place among the states; -1 for an event that is none."""
        return states().rank.get(self.state, -1)

    @property
    def asked(self) -> bool:
        """Whether a provider was asked."""
        at_once = self.state == "bounced" and self.latency_ms is not None
        return bool(self.provider) and (self.state in _ASKING or at_once)

    @property
    def doubtful(self) -> bool:
        """Whether nobody knows what came of the request."""
        return self.state == "unknown" or self.reason == "in_doubt"


@dataclass(slots=True)
class Message:
    """What became of one message."""

    notification_id: str
    message_id: str
    channel: str
    user: str
    template: str
    category: str
    version: int | None
    locale: str
    domain: str
    tags: tuple[str, ...]
    accepted_at: int
    due_at: int
    requested_version: int | None = None
    state: str = "routed"
    reason: str = ""
    provider: str = ""
    failed_over_from: str = ""
    attempts: int = 0
    sent_at: int | None = None
    delivered_at: int | None = None
    preference_version: int = 1
    facts: list[Fact] = field(default_factory=list)
    vendor_ids: list[str] = field(default_factory=list)
    """Of each time that a vendor with receipts took it."""

    @property
    def flagged(self) -> bool:
        """Whether it may have been sent twice."""
        return any(fact.flagged for fact in self.facts)

    @property
    def settled(self) -> bool:
        return self.state in states().settled


@dataclass(frozen=True, slots=True)
class Request:
    """One that was accepted."""

    notification_id: str
    template: str
    accepted_at: int
    state: str = ""
    """Of one without a message."""
    reason: str = ""
    send_at: int | None = None


@dataclass(frozen=True, slots=True)
class OptOut:
    """Category '' is the whole channel."""

    user: str
    category: str
    channel: str
    at: int
    version: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that was given up."""

    stage: str
    reason: str
    topic: str
    offset: int
    at: int


@dataclass(slots=True)
class Diary:
    """Everything that the questions are about."""

    tenant: str
    day: int
    """The midnight before `today`, UTC."""
    stored_at: int
    """When its facts were stored, or when the first was."""
    prices: Mapping[str, str]
    reporting: Collection[str]
    """Accounts that report deliveries."""
    hours: tuple[int, int] = (10, 11)
    """Two hours of the day to compare."""
    requests: list[Request] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    """Those of messages, and those of notifications as a whole."""
    opt_outs: list[OptOut] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    receipts: dict[str, str] = field(default_factory=dict)
    """State by the vendor's id."""

    def alone(self) -> list[Request]:
        """Requests that have no message."""
        with_messages = {m.notification_id for m in self.messages}
        return [r for r in self.requests if r.notification_id not in with_messages]


def on_day(at: int, zone: str = "UTC") -> date:
    return datetime.fromtimestamp(at / 1000, ZoneInfo(zone)).date()


def in_hour(at: int) -> datetime:
    return datetime.fromtimestamp(at // HOUR * 3600, UTC).replace(tzinfo=None)


def moment(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1000, UTC).replace(tzinfo=None)


def group(messages: Iterable[Message], key: Callable[[Message], Any]) -> dict[Any, list[Message]]:
    found: dict[Any, list[Message]] = defaultdict(list)
    for message in messages:
        found[key(message)].append(message)
    return dict(sorted(found.items(), key=lambda item: repr(item[0])))


def quantile(values: Iterable[int], level: float) -> int:
    """As quantileExact has it: an element, never between two."""
    ordered = sorted(values)
    return ordered[min(int(level * len(ordered)), len(ordered) - 1)]


def share(part: int, whole: int, digits: int = 3) -> float:
    return round(part / whole, digits)


# ---------------------------------------------------------------- the answers


def delivered_by_template(of: Diary) -> Answer:
    sms = [m for m in of.messages if m.provider in of.reporting and m.sent_at is not None]
    rows: Answer = []
    for key, ms in group(sms, lambda m: (m.template, m.locale)).items():
        delivered = sum(m.delivered_at is not None for m in ms)
        rows.append((*key, len(ms), delivered, share(delivered, len(ms))))
    return rows


def bounces_by_domain(of: Diary) -> Answer:
    rows: Answer = []
    for domain, ms in group([m for m in of.messages if m.channel == "email"], lambda m: m.domain).items():
        bounced = sum(m.state == "bounced" for m in ms)
        tried = sum(m.sent_at is not None or m.state == "bounced" for m in ms)
        rows.append((domain, tried, bounced, share(bounced, tried) if tried else float("nan")))
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def time_to_deliver(of: Diary) -> Answer:
    rows: Answer = []
    delivered = [m for m in of.messages if m.delivered_at is not None]
    for key, ms in group(delivered, lambda m: (m.provider, in_hour(m.accepted_at))).items():
        times = [m.delivered_at - m.due_at for m in ms if m.delivered_at is not None]
        rows.append((*key, len(ms), quantile(times, 0.5), quantile(times, 0.95)))
    return rows


def sent_often(of: Diary) -> Answer:
    sent = Counter((m.user, on_day(m.sent_at)) for m in of.messages if m.sent_at is not None and m.sent_at >= of.day)
    rows = [(user, on, count) for (user, on), count in sent.items() if count > 6]
    return sorted(rows, key=lambda row: (-row[2], row[0]))


def no_order_mail(of: Diary) -> Answer:
    mails = [
        m for m in of.messages if m.category == "orders" and m.channel == "email" and m.settled and m.sent_at is None
    ]
    by_reason = group(mails, lambda m: (m.state, m.reason))
    rows = [(*key, len(ms), len({m.user for m in ms})) for key, ms in by_reason.items()]
    return sorted(rows, key=lambda row: -row[2])


def cost_by_tag(of: Diary) -> Answer:
    rows: Answer = []
    priced = [m for m in of.messages if m.provider in of.prices]
    for tag in {tag for m in priced for tag in m.tags}:
        ms = [m for m in priced if tag in m.tags and m.sent_at is not None]
        rows.append((tag, "EUR", len(ms), sum((Decimal(of.prices[m.provider]) for m in ms), Decimal(0))))
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def failing_over(of: Diary) -> Answer:
    rows: Answer = []
    over = [m for m in of.messages if m.failed_over_from]
    for key, ms in group(over, lambda m: (m.failed_over_from, m.provider, m.state)).items():
        times = [m.sent_at - m.due_at for m in ms if m.sent_at is not None]
        rows.append((*key, len(ms), round(sum(times) / len(times)) if times else float("nan")))
    return sorted(rows, key=lambda row: (-row[3], row[2]))


def duplicates_and_cost(of: Diary) -> Answer:
    rows: Answer = []
    facts = [fact for fact in of.facts if fact.provider]
    for account in sorted({fact.provider for fact in facts}):
        own = [fact for fact in facts if fact.provider == account]
        sent = sum(fact.state == "sent" for fact in own)
        doubted = [m for m in of.messages if _first_doubt(m) == account]
        extra = sum(
            len(set(m.vendor_ids) - {f.provider_message_id for f in m.facts if f.state == "sent"}) for m in doubted
        )
        price = Decimal(of.prices[account]) if account in of.prices else None
        reported = account in of.reporting
        rows.append(
            (
                account,
                sum(fact.asked for fact in own),
                sum(fact.doubtful for fact in own),
                sum(m.flagged for m in doubted),
                sum(len(set(m.vendor_ids)) > 1 for m in doubted) if reported else None,
                None if price is None else sent * price,
                (sent + extra) * price if reported and price is not None else None,
            )
        )
    return rows


def _first_doubt(message: Message) -> str:
    """The account of the first fact that may be a second sending; '' where there is none."""
    doubts = [f for f in message.facts if (f.flagged or f.state == "unknown") and f.provider]
    return min(doubts, key=lambda f: (f.at, f.event_id)).provider if doubts else ""


def kept_back_by_version(of: Diary) -> Answer:
    counts: Counter[tuple[str, int, str]] = Counter()
    reasons: dict[tuple[str, int, str], list[OptOut]] = defaultdict(list)
    for m in of.messages:
        for said in of.opt_outs:
            applies = said.user == m.user and said.channel == m.channel and said.category in (m.category, "")
            if m.reason == "opted_out" and applies and said.version <= m.preference_version:
                counts[m.user, m.preference_version, m.channel] += 1
                reasons[m.user, m.preference_version, m.channel].append(said)
    rows: Answer = [
        (*key, count, reasons[key][0].category, moment(min(said.at for said in reasons[key])))
        for key, count in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row[3], row[0]))


def opt_outs_by_category(of: Diary) -> Answer:
    rows: Answer = []
    for key, ms in group(of.messages, lambda m: (m.category, m.channel)).items():
        kept = sum(m.reason == "opted_out" for m in ms)
        rows.append((*key, len(ms), kept, share(kept, len(ms)), len(of.opt_outs)))
    return sorted(rows, key=lambda row: (-row[4], row[0], row[1]))


def versions(of: Diary) -> Answer:
    mine = [m for m in of.messages if m.template == "order-shipped"]
    return [
        (
            version,
            len(ms),
            sum(m.sent_at is not None for m in ms),
            sum(m.state == "bounced" for m in ms),
            sum(m.requested_version is not None for m in ms),
        )
        for version, ms in group(mine, lambda m: m.version).items()
    ]


def waiting(of: Diary) -> Answer:
    counts: Counter[tuple[str, str]] = Counter()
    for m in of.messages:
        if not m.settled:
            last = max(m.facts, key=lambda fact: (fact.at, fact.event_id))
            retry = last.state == "retrying"
            counts[
                m.channel,
                f"Waits for a retry after {last.code} at {last.provider}" if retry else "Routed, waits for a sender",
            ] += 1
    for request in of.alone():
        if request.state == "scheduled" and request.send_at is not None:
            counts["", f"Waits for its send_at, {moment(request.send_at):%Y-%m-%d %H:%M:%S} UTC"] += 1
    return sorted(((*key, count) for key, count in counts.items()), key=lambda row: (-row[2], row[0]))


def codes(of: Diary) -> Answer:
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for fact in of.facts:
        if fact.code:
            found[fact.provider, fact.code].append(fact.at)
    rows: Answer = [(*key, len(times), moment(max(times))) for key, times in found.items()]
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))


def sent_by_day(of: Diary) -> Answer:
    sent = Counter(
        (of.tenant, on_day(m.sent_at, "Europe/Berlin"), m.channel) for m in of.messages if m.sent_at is not None
    )
    return [(*key, count) for key, count in sorted(sent.items())]


def funnel(of: Diary) -> Answer:
    rows: Answer = []
    alone = of.alone()
    for template, count in Counter(request.template for request in of.requests).items():
        own = [request.state for request in alone if request.template == template]
        failed, unwanted = sum(s in _FAILED for s in own), sum(s in _NOT_WANTED for s in own)
        in_flight = sum(s not in states().settled for s in own)
        rows.append((template, "", count, len(own), 0, 0, 0, None, failed, unwanted, in_flight))
    channels = {m.channel for m in of.messages if m.provider in of.reporting}
    for (template, channel), ms in group(of.messages, lambda m: (m.template, m.channel)).items():
        rows.append(
            (
                template,
                channel,
                0,
                0,
                len(ms),
                sum(any(fact.state == "routed" for fact in m.facts) for m in ms),
                sum(m.sent_at is not None for m in ms),
                sum(m.delivered_at is not None for m in ms) if channel in channels else None,
                sum(m.state in _FAILED for m in ms),
                sum(m.state in _NOT_WANTED for m in ms),
                sum(not m.settled for m in ms),
            )
        )
    return sorted(rows, key=lambda row: row[:2])


def service_levels(of: Diary) -> Answer:
    rows: Answer = []
    meant = [m for m in of.messages if m.state not in ("skipped", "suppressed", "cancelled", "simulated")]
    for channel, ms in group(meant, lambda m: m.channel).items():
        in_time = sum(m.sent_at is not None and m.sent_at - m.due_at <= 5_000 for m in ms)
        rows.append((channel, len(ms), in_time, share(in_time, len(ms), 4), round((1 - in_time / len(ms)) / 0.01, 1)))
    return rows


def stored_late(of: Diary) -> Answer:
    counts, late = (
        Counter(f.channel for f in of.facts),
        Counter(f.channel for f in of.facts if f.at + HOUR < of.stored_at),
    )
    return [(channel, counts[channel], late[channel]) for channel in sorted(counts)]


def attempts(of: Diary) -> Answer:
    done = [m for m in of.messages if m.settled and m.attempts]
    return [(*key, len(ms)) for key, ms in group(done, lambda m: (m.channel, m.attempts)).items()]


def given_up(of: Diary) -> Answer:
    found: dict[tuple[str, str, str], list[Refused]] = defaultdict(list)
    for record in of.refused:
        found[record.stage, record.reason, record.topic].append(record)
    rows: Answer = []
    for key, records in found.items():
        first, last = min(records, key=lambda r: r.at), max(records, key=lambda r: r.at)
        rows.append((*key, len(records), first.offset, last.at // HOUR - first.at // HOUR))
    return sorted(rows, key=lambda row: -row[3])


def two_hours(of: Diary) -> Answer:
    today = [m for m in of.messages if of.day <= m.accepted_at < of.day + DAY]
    rows: Answer = []
    for channel, ms in group(today, lambda m: m.channel).items():
        found = Counter(in_hour(m.accepted_at).hour for m in ms)
        rows.append((channel, found[of.hours[0]], found[of.hours[1]]))
    return rows


def vendors_list(of: Diary) -> Answer:
    first = min(of.receipts)
    return [(first, of.receipts[first]), ("sms-1-00000000", "unknown")]


def all_of_one(of: Diary) -> Answer:
    over = [m for m in of.messages if m.failed_over_from]
    first = min(over, key=lambda m: (m.accepted_at, _as_clickhouse_sorts(m.message_id)))
    facts = sorted(first.facts, key=lambda fact: (fact.at, fact.rank))
    return [(moment(f.at), f.state, f.attempt, f.provider, f.code, f.latency_ms) for f in facts]


def _as_clickhouse_sorts(uuid: str) -> tuple[int, int]:
    number = UUID(uuid).int
    return number & (1 << 64) - 1, number >> 64


def fan_out(of: Diary) -> Answer:
    each = Counter(m.notification_id for m in of.messages)
    return sorted(Counter(each[request.notification_id] for request in of.requests).items())


def not_sent_by_day(of: Diary) -> Answer:
    fates = [(m.accepted_at, m.state, m.reason) for m in of.messages]
    fates += [(request.accepted_at, request.state, request.reason) for request in of.alone()]
    counts = Counter(
        (on_day(at), state, reason)
        for at, state, reason in fates
        if state not in ("sent", "delivered", "routed", "scheduled")
    )
    rows: Answer = [(*key, _WORDS[key[2]], count) for key, count in counts.items()]
    return sorted(rows, key=lambda row: (row[0], -row[4], row[1]))


def on_time(of: Diary) -> Answer:
    rows: Answer = []
    for channel, ms in group([m for m in of.messages if m.due_at != m.accepted_at], lambda m: m.channel).items():
        late = [m.sent_at - m.due_at for m in ms if m.sent_at is not None]
        rows.append((channel, len(ms), len(late), quantile(late, 0.5), max(late)))
    return rows


ANSWERS: Mapping[int, Callable[[Diary], Answer]] = {
    1: delivered_by_template,
    2: bounces_by_domain,
    3: time_to_deliver,
    4: sent_often,
    5: no_order_mail,
    6: cost_by_tag,
    7: failing_over,
    8: duplicates_and_cost,
    9: kept_back_by_version,
    10: opt_outs_by_category,
    11: versions,
    12: waiting,
    13: codes,
    14: sent_by_day,
    15: funnel,
    16: service_levels,
    17: stored_late,
    18: attempts,
    19: given_up,
    20: two_hours,
    21: vendors_list,
    22: all_of_one,
    23: fan_out,
    24: not_sent_by_day,
    25: on_time,
}
"""By the question's number."""
_PARTICULARS = re.compile(r" \([^()]*\)|, after \d+ attempts|; it may have arrived more than once")


def comparable(rows: Iterable[Iterable[Any]]) -> list[tuple[str, ...]]:
    """Rows without order, types of numbers, parts of seconds and what `why` says of one message alone: what tells two answers apart."""
    return sorted(tuple(_plain(cell) for cell in row) for row in rows)


def _plain(cell: Any) -> str:
    if isinstance(cell, datetime):
        return str(cell.replace(microsecond=0))
    if isinstance(cell, Decimal | float):
        return f"{float(cell):.6f}"
    if isinstance(cell, bool | int):
        return f"{int(cell):.6f}"
    return _PARTICULARS.sub("", cell) if isinstance(cell, str) else str(cell)
