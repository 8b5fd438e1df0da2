"""Reports of all vendors, shuffled, tripled and interrupted, end in the states of a model."""

from __future__ import annotations

import random
from typing import Any

import pytest

from runtime.status import message_status
from schemas.events import DeliveryStatus, states
from tests.support.made import NOW
from tests.support.receipt_day import ACCOUNTS, ENDS, certificate_of_sns, deliver, report_day
from tests.support.receipts import (
    Desk,
    about,
    mailgun,
    mailgun_event,
    sendgrid,
    sendgrid_event,
    ses,
    ses_event,
)
from tracking.status import rollup
from vendors.ses import reports as ses_reports


def event(status: DeliveryStatus) -> dict[str, Any]:
    """A fact as the store shows it."""
    return {
        **status,
        "reason": status["reason"] or "",
        "rank": states().rank.get(status["state"], -1),
        "detail": status["detail"] or "",
    }


@pytest.mark.parametrize("seed", range(3))
async def test_any_order_and_any_repetition_ends_as_the_model_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ses_reports, "fetch", certificate_of_sns)
    rng = random.Random(seed)
    day = report_day(rng, 400)
    desk = Desk(ACCOUNTS, references=day.references, remembered=rng.choice([1, 50, 10_000]))
    assert await deliver(day, desk, rng) > 3 * len(day.callbacks)
    facts: list[Any] = [*desk.broker.statuses]
    for kind, sent, theirs in day.messages:
        at = sent["accepted_at"] + 100
        facts.append(message_status(sent, "routed", now=at, attempt=0))
        facts.append(message_status(sent, "sent", now=at, attempt=1, provider=kind, provider_message_id=theirs))
    rng.shuffle(facts)
    by_message: dict[str, dict[str, Any]] = {}
    for fact in facts:
        by_message.setdefault(fact["message_id"], {})[fact["event_id"]] = fact
    assert by_message.keys() == day.wanted.keys()
    for _, sent, _ in day.messages:
        known = by_message[sent["message_id"]]
        (shown,) = rollup(sent["notification_id"], sent["accepted_at"], [event(fact) for fact in known.values()])[
            "messages"
        ]
        engagement = states().engagement & {fact["state"] for fact in known.values()}
        assert (shown["status"], engagement) == day.wanted[sent["message_id"]]
    assert {kind for kind, _, _ in day.messages} == set(ENDS)


UNKNOWN = about("email", "zoe@example.org")
ACCEPTING = {
    "sendgrid": lambda: sendgrid([sendgrid_event("processed", UNKNOWN)]),
    "mailgun": lambda: mailgun(mailgun_event("accepted", UNKNOWN)),
    "ses": lambda: ses(ses_event("Send", UNKNOWN)),
}


@pytest.mark.parametrize("own_first", [True, False], ids=["unknown, then the report", "the report, then unknown"])
@pytest.mark.parametrize("kind", ACCEPTING)
async def test_accepting_report_with_our_token_ends_an_unknown(
    kind: str, own_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ses_reports, "fetch", certificate_of_sns)
    desk = Desk(ACCOUNTS)
    assert (await desk.post(ACCEPTING[kind]())).status_code < 300
    own = message_status(UNKNOWN, "unknown", now=NOW, attempt=1, provider=kind, reason="in_doubt")
    (reported,) = desk.broker.statuses
    facts = [event(own), event(reported)]  # type: ignore[arg-type]
    shown = rollup(UNKNOWN["notification_id"], NOW - 100, facts if own_first else facts[::-1])
    assert shown["status"] == "sent"
    (message,) = shown["messages"]
    assert (message["status"], message["possible_duplicate"]) == ("sent", False)
    assert message["provider_message_id"] == reported["provider_message_id"]
