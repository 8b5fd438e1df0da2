"""A day and a half of a shop, made up: what its users were sent, as the records of the topics and as a list of its own.

Always the same. docs/analytics.md shows what its queries answer to it, and tests hold the answers against its diary.
May import schemas, runtime.ids and diary. Never: a store, SQL.
"""

from __future__ import annotations

import random
from typing import Any

from runtime import ids
from runtime.records import ConsumerRecord
from schemas.codec import codec
from schemas.events import RecordName
from schemas.topics import DEAD_LETTERS, RECEIPTS, RECIPIENTS, STATUS, requests_topic
from tests.support.diary import Diary, Fact, Message, OptOut, Refused, Request

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


class History:
    """Makes the records, and keeps the diary."""

    def __init__(self, stored_at: int) -> None:
        self.records: list[ConsumerRecord] = []
        self.diary = Diary(TENANT, START + 15 * HOUR, stored_at, PRICES, ("sms-1",))
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
        fact = Fact(
            value["event_id"],
            value.get("channel", ""),
            state,
            at,
            attempt,
            more.get("provider", ""),
            more.get("provider_message_id", ""),
            more.get("code") or "",
            more.get("reason") or "",
            more.get("latency_ms"),
            value.get("possible_duplicate", False),
        )
        self.diary.facts.append(fact)
        if message is not None:
            message.facts.append(fact)

    def _profiles(self) -> None:
        for number in range(60):
            user, at = f"u{number}", START + number * MINUTE
            versions: list[dict[str, Any]] = [{}]
            if number % 12 == 3:
                versions.append({"categories": {"marketing": {"email": False}}})
                self.diary.opt_outs.append(OptOut(user, "marketing", "email", at, len(versions)))
            if number % 20 == 7:
                versions.append({**versions[-1], "channels": {"sms": False}})
                self.diary.opt_outs.append(OptOut(user, "", "sms", at, len(versions)))
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
        refused = number % 45 == 11
        alone = ("rejected", "unknown_recipient") if refused else ("", "")
        self.diary.requests.append(Request(nid, template, at, *alone, send_at))
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
        if refused:
            self._fact(None, nid, "rejected", at + 40, reason="unknown_recipient", template_id=template, recipient=user)
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
        category = _TEMPLATES[template]
        message = Message(nid, mid, channel, user, template, category, version, locale, domain, tags, at, due_at, asked)
        self.diary.messages.append(message)
        said = [said for said in self.diary.opt_outs if said.user == user and said.at <= due_at]
        if any(each.channel == channel and each.category in (category, "") for each in said):
            message.preference_version = max(each.version for each in said)
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
        detail = f"in doubt: {code}" if code == "timeout" else code
        reason = {"timeout": "in_doubt", "429 20429": "throttled", "451 4.7.1": "throttled"}.get(code)
        said = {"provider": account, "code": code, "reason": reason, "detail": detail, "latency_ms": 90, **more}
        self._fact(message, message.notification_id, state, at, attempt, **said)

    def _doubt(self, message: Message, account: str, at: int, attempt: int) -> None:
        """The answer is lost; every second such request was taken all the same."""
        self._error(message, "retrying", account, "timeout", at, attempt, due_at=at + 4_000, possible_duplicate=True)
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
        said = {**answered, "reason": end[1] or None, "code": code, "source": None, "recipient": "addr:0"}
        self._fact(message, message.notification_id, end[0], at + 2_500, attempt, **said)

    def _receipt(self, message: Message, account: str, vendor_id: str, at: int, state: str = "delivered") -> None:
        message.vendor_ids.append(vendor_id)
        self.diary.receipts[vendor_id] = state
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
            at = now - (3 - number) * HOUR
            self.diary.refused.append(Refused("router", "undecodable", requests_topic("normal"), number, at))
