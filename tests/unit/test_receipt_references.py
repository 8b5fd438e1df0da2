"""BulkSMS and OneSignal bring nothing of ours back: the sender's reference says what a report is about, or it comes again."""

from __future__ import annotations

from typing import Any, cast

import pytest

from runtime import ids
from runtime.metrics import CALLBACKS
from runtime.references import RETENTION_MS, forget_old, reference_key, reference_record, subject_of_reference
from runtime.stores import MemoryStore
from schemas.codec import codec
from schemas.events import Reference, states
from schemas.topics import REFERENCES
from senders.outcomes import Attempt, from_result
from tests.support.accounts import account, sender_of, to_send
from tests.support.made import NOW, RECORD, made
from tests.support.receipts import (
    NID,
    NOW_S,
    PATH_SECRET,
    TEXT,
    Callback,
    Desk,
    about,
    bulksms,
    bulksms_account,
    bulksms_message,
    iso,
    onesignal,
    onesignal_account,
    onesignal_event,
    reference,
)
from vendors.bulksms.sender import user_supplied_id
from vendors.http import HttpResponse
from vendors.sender import InDoubt, Rejected, Sent

PUSH = about("push", "s-1")
KNOWN = {**reference("bulk", "ours", TEXT), **reference("one", "theirs", PUSH, "u-1")}


def desk(kind: str, **more: Any) -> Desk:
    made_account = bulksms_account() if kind == "bulksms" else onesignal_account()
    return Desk([made_account], **{"references": KNOWN, **more})


def counted(kind: str, outcome: str) -> float:
    return float(CALLBACKS.labels(kind, outcome)._value.get())


LOST = ("undelivered", "carrier")
NOTED = None
ROWS: list[tuple[Callback, tuple[str, str | None] | None, bool]] = [
    (bulksms([bulksms_message("DELIVERED")]), ("delivered", None), False),
    (bulksms([bulksms_message("FAILED", "BLOCKED")]), LOST, True),
    *((bulksms([bulksms_message("FAILED", why)]), LOST, False) for why in ("EXPIRED", "HANDSET_ERROR", "NOT_SENT", None)),
    *((bulksms([bulksms_message(word)]), NOTED, False) for word in ("ACCEPTED", "SCHEDULED", "SENT", "UNKNOWN", "NEXT_YEAR")),
    (onesignal(onesignal_event("received")), ("delivered", None), False),
    (onesignal(onesignal_event("clicked")), ("clicked", None), False),
    (onesignal(onesignal_event("failed")), LOST, False),
    (onesignal(onesignal_event("unsubscribed")), ("bounced", "invalid_token"), False),
    (onesignal(onesignal_event("sent")), NOTED, False),
    (onesignal(onesignal_event("next_year")), NOTED, False),
]  # fmt: skip


@pytest.mark.parametrize(("callback", "wanted", "opted_out"), ROWS)
async def test_event(callback: Callback, wanted: tuple[str, str | None] | None, opted_out: bool) -> None:
    at, sent = desk(callback.kind), TEXT if callback.kind == "bulksms" else PUSH
    assert (await at.post(callback)).status_code == 204
    (receipt,) = at.broker.receipts
    assert receipt["message_id"] == sent["message_id"]
    assert receipt["state"] in states().all
    if wanted is NOTED:
        assert at.broker.statuses == []
        return
    (status,) = at.broker.statuses
    assert (status["state"], status["reason"], status["opted_out"]) == (*wanted, opted_out)
    assert (status["notification_id"], status["message_id"], status["tenant"]) == (NID, sent["message_id"], "t")
    # A device leaves the profile of the user whom the sender knew.
    assert status["recipient"] == (
        "u-1" if callback.kind == "onesignal" else "addr:" + ids.address_hash("sms", sent["address"])
    )


YOUNG: dict[str, Any] = {"bulksms": (lambda ago: bulksms([bulksms_message("DELIVERED", submission={"date": iso(NOW - ago * 1000)})])),
                         "onesignal": (lambda ago: onesignal(onesignal_event("received", timestamp=NOW_S - ago)))}  # fmt: skip


@pytest.mark.parametrize("kind", YOUNG)
async def test_a_report_before_its_reference_is_to_come_again_for_a_minute_and_then_has_no_message(kind: str) -> None:
    at, before = desk(kind, references={}), counted(kind, "no_message")
    answer = await at.post(YOUNG[kind](59))
    assert (answer.status_code, answer.json()["code"]) == (503, "not_now") and int(answer.headers["retry-after"]) > 0
    assert at.broker.records == []
    assert (await at.post(YOUNG[kind](60))).status_code == 204
    assert (len(at.broker.receipts), at.broker.statuses) == (1, [])
    assert counted(kind, "no_message") == before + 1
    at.references.update(KNOWN)
    assert (await at.post(YOUNG[kind](60))).status_code == 204  # now it is known, and the receipt is published again
    assert [status["state"] for status in at.broker.statuses] == ["delivered"]


async def test_a_time_that_nobody_named_makes_no_report_wait_for_ever() -> None:
    at = desk("bulksms", references={})
    assert (await at.post(bulksms([bulksms_message("DELIVERED", submission=None)]))).status_code == 204


@pytest.mark.parametrize("kind", ["bulksms", "onesignal"])
@pytest.mark.parametrize(
    "path", ["", "/", f"/{PATH_SECRET[:-1]}", f"/{PATH_SECRET.upper()}", f"/{PATH_SECRET}x", f"/{PATH_SECRET}/x"]
)
async def test_an_account_is_known_by_the_secret_in_its_path(kind: str, path: str) -> None:
    at = desk(kind)
    make = (
        bulksms([bulksms_message("DELIVERED")], path)
        if kind == "bulksms"
        else onesignal(onesignal_event("received"), path)
    )
    assert (await at.post(make)).status_code in (403, 404)
    assert at.broker.records == []


async def test_bulksms_asks_with_an_empty_array_whether_the_url_answers() -> None:
    at = desk("bulksms")
    assert (await at.post(bulksms([]))).status_code == 204
    assert at.broker.records == []


async def test_what_bulksms_would_not_send_again_is_passed_over_and_the_others_are_taken() -> None:
    at, before = desk("bulksms"), counted("bulksms", "malformed")
    bad = [7, None, {}, bulksms_message("DELIVERED", id=None), {**bulksms_message("DELIVERED"), "status": None}]
    assert (await at.post(bulksms([*bad, bulksms_message("DELIVERED")]))).status_code == 204
    assert [status["state"] for status in at.broker.statuses] == ["delivered"]
    assert counted("bulksms", "malformed") == before + len(bad)


async def test_an_incoming_stop_is_about_its_number_and_nothing_of_other_messages_is_kept() -> None:
    at = desk("bulksms")
    stop = bulksms_message("RECEIVED", type="RECEIVED", body="Stop", **{"from": "4915112345678"})
    other = {**stop, "id": "2", "body": "Please stop calling me at 0151"}
    assert (await at.post(bulksms([stop, other]))).status_code == 204
    (receipt,) = at.broker.receipts
    assert (receipt["state"], receipt["message_id"], receipt["raw"]) == ("unsubscribed", None, b"")


@pytest.mark.parametrize("body", [b"{", b"7", b"{}", b'{"kind": "x"}', b'{"message_id": "x"}'])
@pytest.mark.parametrize("kind", ["bulksms", "onesignal"])
async def test_what_cannot_be_read_is_a_problem(kind: str, body: bytes) -> None:
    at = desk(kind)
    callback = Callback(kind, body, {"Content-Type": "application/json"}, f"/{PATH_SECRET}")
    assert (await at.post(callback)).status_code == 400
    assert at.broker.records == []


# -- what the sender writes -------------------------------------------------------------------------------------------

ID = "0190c0de-0000-5000-8000-000000000001"


class Canned:
    """A transport with one answer."""

    def __init__(self, answer: HttpResponse) -> None:
        self.answer = answer

    async def post(self, *_: Any, **__: Any) -> HttpResponse:
        return self.answer


TAKEN = {
    "bulksms": HttpResponse(201, {}, b'[{"id": "B1", "status": {"id": "ACCEPTED.null", "type": "ACCEPTED"}}]'),
    "onesignal": HttpResponse(200, {}, b'{"id": "o1"}'),
    "twilio": HttpResponse(201, {}, b'{"sid": "SM1"}'),
}


@pytest.mark.parametrize(
    ("kind", "status", "wanted"),
    [
        ("bulksms", None, user_supplied_id(ID)),
        ("bulksms", 500, user_supplied_id(ID)),
        ("bulksms", 400, None),
        ("onesignal", None, "o1"),
        ("onesignal", 500, None),
        ("twilio", None, None),
    ],
)
async def test_a_message_that_may_have_been_sent_has_a_reference_where_reports_need_one(
    kind: str, status: int | None, wanted: str | None, tmp_path: Any
) -> None:
    sender, message = sender_of(account(kind, tmp_path)), to_send(kind, message_id=ID, notification_id=NID)
    sender._http = Canned(TAKEN[kind] if status is None else HttpResponse(status, {}, b"{}"))
    result = await sender.send(message)
    assert isinstance(result, Sent if status is None else Rejected if status == 400 else InDoubt)
    outcome = from_result(Attempt(message, RECORD, NOW, "p", 1), result, jitter=0.5, max_retries=3)
    records = [record for record in outcome.records if record.topic == REFERENCES]
    assert [record.key for record in records] == ([] if wanted is None else [reference_key("p", wanted).encode()])
    for record in records:
        subject = subject_of_reference(cast(Reference, codec("Reference").decode(record.value)))
        assert subject.attempt_ref is not None
        assert (subject.attempt_ref.message_id, subject.attempt_ref.notification_id, subject.provider) == (ID, NID, "p")


def test_references_are_forgotten_when_their_topic_has_dropped_them() -> None:
    store, record = MemoryStore(), reference_record(TEXT, "p", "r", None, NOW)
    assert record.key is not None and record.value is not None
    store.put(record.key, record.value)
    assert forget_old(store, NOW + RETENTION_MS) == 0
    assert forget_old(store, NOW + RETENTION_MS + 1) == 1
    assert (RETENTION_MS, len(store)) == (7 * 86_400_000, 0)


def test_a_reference_of_another_publisher_that_cannot_be_is_about_nothing() -> None:
    for wrong in ({"message_id": "x"}, {"lane": "slow"}, {"tenant": "a:b"}, {"attempt": -1}):
        value = made(
            "Reference",
            **{"message_id": ID, "notification_id": NID, "tenant": "t", "lane": "bulk", "attempt": 1, **wrong},
        )
        assert subject_of_reference(cast(Reference, value)).attempt_ref is None
