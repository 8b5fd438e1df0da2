"""What all vendors report of many messages, and what it has to come to: written down once, then shuffled, repeated and lost.

day = report_day(random.Random(1), 500)
await deliver(day, desk, rng)          every callback three times, in any order, until its vendor is content
day.wanted                             message id → the state and the engagement that it ends with
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from runtime import ids
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from tests.support.made import NOW, message
from tests.support.receipts import (
    NOW_S,
    Callback,
    Desk,
    bulksms,
    bulksms_account,
    bulksms_message,
    certificate,
    iso,
    mailgun,
    mailgun_account,
    mailgun_event,
    onesignal,
    onesignal_account,
    onesignal_event,
    reference,
    sendgrid,
    sendgrid_account,
    sendgrid_event,
    ses,
    ses_account,
    ses_event,
    vonage,
    vonage_account,
    vonage_receipt,
)
from vendors.http import HttpResponse

ACCOUNTS: Sequence[ProviderSettings] = (
    sendgrid_account(),
    mailgun_account(),
    ses_account(),
    vonage_account(),
    bulksms_account(),
    onesignal_account(),
)
CHANNEL = {
    "sendgrid": "email",
    "mailgun": "email",
    "ses": "email",
    "vonage": "sms",
    "bulksms": "sms",
    "onesignal": "push",
}
BATCH = 7
"""Events of SendGrid in one request."""


class End(NamedTuple):
    """How a message ends: what is reported, and what that comes to."""

    events: tuple[str, ...]
    state: str
    engagement: frozenset[str] = frozenset()


def mail_ends(
    sent: str, delivered: str, bounce: str, opened: str, clicked: str, spam: str, unsubscribed: str
) -> list[End]:
    """By the words of a vendor."""
    return [
        End((), "sent"),
        End((sent,), "sent"),
        End((sent, delivered), "delivered"),
        End((delivered,), "delivered"),
        End((sent, bounce), "bounced"),
        End((sent, delivered, bounce), "bounced"),
        End((sent, delivered, opened, opened, clicked), "delivered", frozenset({"opened", "clicked"})),
        End((delivered, spam), "delivered", frozenset({"complained"})),
        End((delivered, opened, unsubscribed), "delivered", frozenset({"opened", "unsubscribed"})),
    ]


ENDS: dict[str, list[End]] = {
    "sendgrid": [
        *mail_ends("processed", "delivered", "bounce", "open", "click", "spamreport", "unsubscribe"),
        End(("processed", "deferred", "deferred", "dropped"), "undelivered"),
    ],
    "mailgun": [
        *mail_ends("accepted", "delivered", "failed", "opened", "clicked", "complained", "unsubscribed"),
        End(("accepted", "rejected"), "undelivered"),
    ],
    "ses": [
        *mail_ends("Send", "Delivery", "Bounce", "Open", "Click", "Complaint", "Subscription"),
        End(("Send", "DeliveryDelay", "Reject"), "undelivered"),
    ],
    "vonage": [End((), "sent"), End(("accepted", "delivered"), "delivered"), End(("buffered", "failed"), "undelivered"),
               End(("rejected3",), "bounced")],
    "bulksms": [End((), "sent"), End(("SENT", "DELIVERED"), "delivered"), End(("SENT", "FAILED"), "undelivered"),
                End(("ACCEPTED", "SENT"), "sent")],
    "onesignal": [End((), "sent"), End(("sent", "received"), "delivered"), End(("failed",), "undelivered"),
                  End(("received", "clicked"), "delivered", frozenset({"clicked"})), End(("unsubscribed",), "bounced")],
}  # fmt: skip


@dataclass
class Day:
    """Messages, the callbacks about them, and what these come to."""

    messages: list[tuple[str, ChannelMessage, str]] = field(default_factory=list)
    """(kind, message, the vendor's id)."""
    callbacks: list[Callback] = field(default_factory=list)
    wanted: dict[str, tuple[str, frozenset[str]]] = field(default_factory=dict)
    references: dict[str, Any] = field(default_factory=dict)


def _mailgun(event: str, sent: ChannelMessage, theirs: str, n: int) -> Callback:
    more: dict[str, Any] = {"id": f"{theirs}-{event}-{n}", "timestamp": NOW_S - 30 + n}
    more["message"] = {"headers": {"message-id": f"{theirs}@mg"}}
    if event == "failed":
        more |= {"severity": "permanent", "delivery-status": {"code": 550, "message": "5.1.1 no such user"}}
    return mailgun(mailgun_event(event, sent, **more), token=f"{theirs}{event}{n}".ljust(50, "x"))


def _ses(event: str, sent: ChannelMessage, theirs: str, n: int) -> Callback:
    own: dict[str, Any] = {"timestamp": iso(NOW - 30_000 + n * 1000)}
    if event == "Bounce":
        own |= {"bounceType": "Permanent", "feedbackId": f"f-{theirs}"}
    made = ses_event(event, sent, own)
    made["mail"]["messageId"] = theirs
    return ses(made)


def _vonage(event: str, sent: ChannelMessage, theirs: str, n: int) -> Callback:
    status, code = event.rstrip("0123456789"), event.lstrip("abcdefghijklmnopqrstuvwxyz")
    return vonage(vonage_receipt(status, code or "0", sent, messageId=theirs))


def _bulksms(event: str, sent: ChannelMessage, theirs: str, n: int) -> Callback:
    return bulksms([bulksms_message(event, id=theirs, userSuppliedId=theirs)])


def _onesignal(event: str, sent: ChannelMessage, theirs: str, n: int) -> Callback:
    return onesignal(onesignal_event(event, message_id=theirs, event_id=f"{theirs}{n}", timestamp=NOW_S - 120))


MAKE: dict[str, Callable[[str, ChannelMessage, str, int], Callback]] = {
    "mailgun": _mailgun,
    "ses": _ses,
    "vonage": _vonage,
    "bulksms": _bulksms,
    "onesignal": _onesignal,
}


async def certificate_of_sns(url: str, form: bytes | None) -> HttpResponse:
    """What SNS answers to who asks for its certificate: in place of `fetch` of vendors/ses/reports.py."""
    return HttpResponse(200, {}, certificate())


def report_day(rng: random.Random, count: int) -> Day:
    """So many messages, each of a vendor and an end chosen by chance."""
    day = Day()
    batch: list[Any] = []
    for number in range(count):
        kind = rng.choice(list(ENDS))
        end, channel, theirs = rng.choice(ENDS[kind]), CHANNEL[kind], f"{kind}-{number}"
        address = {"email": f"u{number}@example.org", "sms": f"+49151{number:08}", "push": f"s-{number}"}[channel]
        accepted_at = NOW - rng.randrange(60_000, 20 * 3_600_000)
        nid = ids.notification_id(accepted_at, "t")
        mid = ids.message_id(nid, channel, ids.address_hash(channel, address))
        sent = message(channel=channel, address=address, notification_id=nid, message_id=mid, accepted_at=accepted_at)
        day.messages.append((kind, sent, theirs))
        day.wanted[mid] = end.state, end.engagement
        if kind in ("bulksms", "onesignal"):
            day.references |= reference("bulk" if kind == "bulksms" else "one", theirs, sent)
        for n, event in enumerate(end.events):
            if kind == "sendgrid":
                more: dict[str, Any] = {"status": "5.1.1"} if event == "bounce" else {}
                batch.append(
                    sendgrid_event(
                        event, sent, sg_event_id=f"{theirs}-{n}", sg_message_id=f"{theirs}.recvd-1-0.0", **more
                    )
                )
            else:
                day.callbacks.append(MAKE[kind](event, sent, theirs, n))
    rng.shuffle(batch)
    day.callbacks += [sendgrid(batch[start : start + BATCH]) for start in range(0, len(batch), BATCH)]
    return day


ROUNDS = 50
STOPS = {"mailgun": {200, 406}}
"""The answers after which a vendor does not repeat: for all others what is no 5xx."""


async def deliver(day: Day, desk: Desk, rng: random.Random, away: float = 0.1) -> int:
    """Post every callback three times, in any order, and again whenever the broker is away, until each is taken; how many posts."""
    waiting = day.callbacks * 3
    posts = 0
    for _ in range(ROUNDS):
        rng.shuffle(waiting)
        again = []
        for callback in waiting:
            desk.broker.away = rng.random() < away
            answer = await desk.post(callback)
            posts += 1
            if answer.status_code >= 500 or (callback.kind in STOPS and answer.status_code not in STOPS[callback.kind]):
                again.append(callback)
            else:
                assert answer.status_code < 300, (answer.status_code, callback)
        if not again:
            return posts
        waiting = again
    raise AssertionError(f"{len(waiting)} callbacks are never taken: {waiting[0]}")
