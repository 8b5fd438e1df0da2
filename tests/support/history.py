"""A day and a half of a shop, made up: what its users were sent, as the records of the topics and as a list of its own.

Always the same. docs/analytics.md shows what its queries answer to it, and tests hold the answers against the list.
May import schemas and runtime.ids. Never: a store, SQL.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from runtime import ids
from runtime.records import ConsumerRecord
from schemas.codec import codec
from schemas.events import RecordName
from schemas.topics import DEAD_LETTERS, RECEIPTS, RECIPIENTS, STATUS, requests_topic

START = 1_772_442_000_000
"""2026-03-02 09:00:00 UTC."""
MINUTE, HOUR = 60_000, 3_600_000
NOW = START + 36 * HOUR
"""2026-03-03 21:00:00 UTC: what `now()` is in the document."""
TENANT = "shop"
REQUESTS = 900
PRICES = {"mail-1": "0.0004", "mail-2": "0.001", "sms-1": "0.0075"}
_DOMAINS = ("mail.example", "post.example", "inbox.example")
_TEMPLATES = {"order-shipped": "orders", "spring": "marketing", "code": "security"}
_SOURCE = {"topic": "notify.dispatch.email.normal.v1", "partition": 0, "offset": 1}


@dataclass(slots=True)
class Message:
    """What became of one message, as its maker knows it; times in milliseconds."""

    notification_id: str
    message_id: str
    channel: str
    user: str
    template: str
    version: int
    locale: str
    domain: str
    tags: tuple[str, ...]
    accepted_at: int
    due_at: int
    state: str = "routed"
    reason: str = ""
    provider: str = ""
    failed_over_from: str = ""
    attempts: int = 0
    flagged: bool = False
    sent_at: int | None = None
    delivered_at: int | None = None
    preference_version: int = 1
    codes: list[tuple[int, str, str]] = field(default_factory=list)
    """(time, account, code) of each error."""
    vendor_ids: list[str] = field(default_factory=list)

    @property
    def category(self) -> str:
        return _TEMPLATES[self.template]


class History:
    """Makes the records, and keeps the list."""

    def __init__(self) -> None:
        self.records: list[ConsumerRecord] = []
        self.messages: list[Message] = []
        self.alone: list[tuple[str, str, str]] = []
        """(notification, state, reason) of the requests that have no message."""
        self.requests: list[tuple[str, str, int]] = []
        """(notification, template, accepted at)."""
        self.opt_outs: list[tuple[str, str, str, int]] = []
        """(user, category, channel, time)."""
        self._rng = random.Random(2_026)
        self._profiles()
        for number in range(REQUESTS):
            self._request(number)

    # -- records

    def _record(self, topic: str, name: RecordName, value: dict[str, Any]) -> None:
        self.records.append(ConsumerRecord(topic, 0, len(self.records), 0, None, codec(name).encode(value)))

    def _fact(self, message: Message | None, nid: str, state: str, at: int, attempt: int = 0, **more: Any) -> None:
        value: dict[str, Any] = {
            "event_id": ids.event_id(message.message_id if message else nid, state, attempt, str(at)),
            "notification_id": nid,
            "tenant": TENANT,
            "lane": "normal",
            "state": state,
            "occurred_at": at,
            "attempt": attempt,
            "source": _SOURCE,
            **more,
        }
        if message is not None:
            value |= {
                "message_id": message.message_id,
                "channel": message.channel,
                "template_id": message.template,
                "template_version": message.version,
                "recipient": message.user,
                "category": message.category,
                "domain": message.domain or None,
                "preference_version": message.preference_version,
                "possible_duplicate": more.get("possible_duplicate", message.flagged),
            }
        if state == "routed" and message is not None:
            value["locale"] = message.locale or None
        self._record(STATUS, "DeliveryStatus", value)

    def _profiles(self) -> None:
        for number in range(60):
            versions: list[dict[str, Any]] = [{}]
            if number % 12 == 3:
                versions.append({"categories": {"marketing": {"email": False}}})
                self.opt_outs.append((f"u{number}", "marketing", "email", START + number * MINUTE))
            if number % 20 == 7:
                versions.append({"channels": {"sms": False}})
                self.opt_outs.append((f"u{number}", "", "sms", START + number * MINUTE))
            for version, said in enumerate(versions, 1):
                at = START - 24 * HOUR if version == 1 else START + number * MINUTE
                self._record(
                    RECIPIENTS,
                    "RecipientProfile",
                    {"tenant": TENANT, "user_id": f"u{number}", "version": version, "updated_at": at, **said},
                )

    # -- one request

    def _request(self, number: int) -> None:
        rng = self._rng
        at = START + number * 34 * HOUR // REQUESTS
        user = f"u{int(60 * rng.random() ** 2)}"
        template = ("order-shipped", "order-shipped", "spring", "code")[number % 4]
        asked = 1 if template == "order-shipped" and number % 8 == 0 else None
        nid = ids.notification_id(at, TENANT, str(number))
        tags = ("spring-26",) if template == "spring" else ("checkout", "eu") if number % 5 else ("checkout",)
        send_at = at + 10 * MINUTE if number % 50 == 9 else None
        self.requests.append((nid, template, at))
        self._record(
            requests_topic("normal"),
            "NotificationRequest",
            {
                "notification_id": nid,
                "tenant": TENANT,
                "accepted_at": at,
                "user_id": user,
                "template_id": template,
                "template_version": asked,
                "tags": list(tags),
                "send_at": send_at,
                "source": "http",
            },
        )
        if number % 45 == 11:
            self._fact(None, nid, "rejected", at + 40, reason="unknown_recipient", template_id=template, recipient=user)
            self.alone.append((nid, "rejected", "unknown_recipient"))
            return
        if send_at is not None:
            self._fact(None, nid, "scheduled", at + 40, due_at=send_at, template_id=template, recipient=user)
        channels = {"code": ("sms",), "spring": ("email",)}.get(template, ("email", "push"))
        for channel in channels:
            self._message(number, nid, channel, user, template, asked, tags, at, send_at or at)

    def _message(
        self,
        number: int,
        nid: str,
        channel: str,
        user: str,
        template: str,
        asked: int | None,
        tags: tuple[str, ...],
        at: int,
        due_at: int,
    ) -> None:
        locale = "de" if int(user[1:]) % 3 == 0 and template != "code" else ""
        domain = _DOMAINS[int(user[1:]) % 3] if channel == "email" else ""
        version = asked or (2 if template == "order-shipped" else 1)
        mid = ids.message_id(nid, channel, user)
        message = Message(nid, mid, channel, user, template, version, locale, domain, tags, at, due_at)
        self.messages.append(message)
        refused = {(u, c, ch) for u, c, ch, when in self.opt_outs if when <= due_at}
        if (user, message.category, channel) in refused or (user, "", channel) in refused:
            message.preference_version = 2
            self._end(message, "skipped", "opted_out", due_at + 40, 0)
            return
        self._fact(message, nid, "routed", due_at + 40)
        if number >= REQUESTS - 6:
            self._waits(message, due_at + 900)
            return
        self._send(number, message, due_at + 200 + self._rng.randrange(900))

    def _send(self, number: int, message: Message, at: int) -> None:
        rng, account = self._rng, {"email": "mail-1", "sms": "sms-1", "push": "push-1"}[message.channel]
        roll, attempt = rng.random(), 1
        if message.channel == "email" and roll < 0.06:
            self._error(message, "failed_over", account, "451 4.7.1", at, attempt)
            message.failed_over_from, account, attempt, at = account, "mail-2", attempt + 1, at + 120
        while roll > 0.93 and attempt < 4 and rng.random() < 0.8:
            code = "429 20429" if message.channel == "sms" else "451 4.3.0"
            self._error(message, "retrying", account, code, at, attempt, due_at=at + 5_000)
            attempt, at = attempt + 1, at + 5_000
        if message.channel == "sms" and 0.1 < roll < 0.16:
            self._doubt(message, account, at, attempt)
            attempt, at = attempt + 1, at + 4_000
        if message.domain == "inbox.example" and 0.2 < roll < 0.32:
            self._error(message, "bounced", account, "550 5.1.1", at, attempt, reason="hard_bounce")
            message.state, message.reason, message.provider = "bounced", "hard_bounce", account
            return
        self._sent(message, account, at, attempt, delivered=message.channel == "sms" and roll > 0.05)

    def _error(self, message: Message, state: str, account: str, code: str, at: int, attempt: int, **more: Any) -> None:
        message.attempts += 1
        message.codes.append((at, account, code))
        detail = f"in doubt: {code}" if code == "timeout" else code
        reason = {"timeout": "in_doubt", "429 20429": "throttled", "451 4.7.1": "throttled"}.get(code)
        said = {"provider": account, "code": code, "reason": reason, "detail": detail, "latency_ms": 90, **more}
        self._fact(message, message.notification_id, state, at, attempt, **said)

    def _doubt(self, message: Message, account: str, at: int, attempt: int) -> None:
        """The answer is lost; every second such request was taken all the same."""
        message.flagged = True
        self._error(message, "retrying", account, "timeout", at, attempt, due_at=at + 4_000)
        if len(message.user) % 2 or message.user < "u3":
            self._receipt(message, account, f"lost-{message.message_id[:8]}", at + 3_000)

    def _sent(self, message: Message, account: str, at: int, attempt: int, *, delivered: bool) -> None:
        vendor_id = f"{account}-{message.message_id[:8]}"
        message.attempts, message.state, message.provider, message.sent_at = attempt, "sent", account, at
        answered = {"provider": account, "provider_message_id": vendor_id}
        self._fact(message, message.notification_id, "sent", at, attempt, latency_ms=80, **answered)
        if message.channel != "sms":
            return
        self._receipt(message, account, vendor_id, at + 2_500, "delivered" if delivered else "undelivered")
        end = ("delivered", "") if delivered else ("undelivered", "carrier")
        message.state, message.reason = end
        if delivered:
            message.delivered_at = at + 2_500
        code = None if delivered else "30003"
        if code:
            message.codes.append((at + 2_500, account, code))
        said = {**answered, "reason": end[1] or None, "code": code, "source": None, "recipient": "addr:0"}
        self._fact(message, message.notification_id, end[0], at + 2_500, attempt, **said)

    def _receipt(self, message: Message, account: str, vendor_id: str, at: int, state: str = "delivered") -> None:
        message.vendor_ids.append(vendor_id)
        value = {
            "event_id": ids.receipt_id(account, vendor_id, state),
            "provider": account,
            "provider_message_id": vendor_id,
            "message_id": message.message_id,
            "state": state,
            "occurred_at": at,
            "received_at": at,
            "raw": b"",
        }
        self._record(RECEIPTS, "ProviderReceipt", value)

    def _end(self, message: Message, state: str, reason: str, at: int, attempt: int) -> None:
        message.state, message.reason = state, reason
        self._fact(message, message.notification_id, state, at, attempt, reason=reason)

    def _waits(self, message: Message, at: int) -> None:
        """Nobody took it yet."""
        if message.channel == "email":
            self._error(message, "retrying", "mail-1", "451 4.3.0", at, 1, due_at=at + 60_000)

    def give_up_three(self, now: int) -> None:
        """Three records of junk, a while before the real `now`: the store keeps dead letters for 30 days only."""
        for number in range(3):
            value = {
                "dead_letter_id": ids.dead_letter_id(requests_topic("normal"), 0, number, 0, None, b"x"),
                "topic": requests_topic("normal"),
                "partition": 0,
                "offset": number,
                "key": None,
                "value": b"junk",
                "stage": "router",
                "reason": "undecodable",
                "error_class": "DecodeError",
                "attempts": 1,
                "occurred_at": now - (3 - number) * HOUR,
            }
            self._record(DEAD_LETTERS, "DeadLetter", value)
