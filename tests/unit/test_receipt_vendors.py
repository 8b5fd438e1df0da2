"""Mailgun, Vonage and SES report back: each event's meaning by a second, hand-written table; who may tell, and what is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA1, SHA512
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import ids
from runtime.errors import SettingsError
from runtime.metrics import CALLBACKS
from runtime.settings import ProviderSettings
from schemas.events import states
from tests.support.made import NOW
from tests.support.receipts import (
    CERTIFICATE_URL,
    MAIL,
    NID,
    NOW_S,
    OTHER_SNS_KEY,
    PATH_SECRET,
    TEXT,
    TOPIC,
    Callback,
    Desk,
    certificate,
    iso,
    mailgun,
    mailgun_account,
    mailgun_event,
    ses,
    ses_account,
    ses_event,
    sns_fields,
    sns_posted,
    sns_signature,
    vonage,
    vonage_account,
    vonage_receipt,
)
from vendors.http import HttpResponse, NotSentError
from vendors.registry import create_report_readers
from vendors.ses import reports as ses_reports
from vendors.sms_text import says_stop


class Aws:
    """SNS as this process asks it: a certificate, and the confirmation of a subscription."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes | None]] = []
        self.answer = HttpResponse(200, {}, certificate())
        self.away = False

    async def fetch(self, url: str, form: bytes | None) -> HttpResponse:
        self.asked.append((url, form))
        if self.away:
            raise NotSentError("away")
        return self.answer


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> Aws:
    made = Aws()
    monkeypatch.setattr(ses_reports, "fetch", made.fetch)
    return made


def counted(kind: str, outcome: str) -> float:
    return float(CALLBACKS.labels(kind, outcome)._value.get())


ACCOUNTS: dict[str, Callable[..., ProviderSettings]] = {
    "mailgun": mailgun_account,
    "vonage": vonage_account,
    "ses": ses_account,
}
TAKEN = {"mailgun": 200, "vonage": 204, "ses": 204}


def desk(kind: str, **more: Any) -> Desk:
    return Desk([ACCOUNTS[kind](**more)])


# -- the table, a second time -----------------------------------------------------------------------------------------

HARD, SOFT, GONE = ("bounced", "hard_bounce"), ("bounced", "soft_bounce"), ("bounced", "invalid_number")
LOST = ("undelivered", "carrier")
PERMANENT = {"event": "failed", "severity": "permanent"}
NOTED = None

Wanted = tuple[str, str | None] | None
Row = tuple[Callback, Wanted, bool]


def failed(code: int, text: str = "", **more: Any) -> Callback:
    status = {"code": code, "message": text, "attempt-no": 1, **more}
    said: dict[str, Any] = {**PERMANENT, "reason": "bounce", "delivery-status": status}
    return mailgun(mailgun_event(**said))


ROWS: list[Row] = [
    (mailgun(mailgun_event("accepted")), ("sent", None), False),
    (mailgun(mailgun_event("delivered", **{"delivery-status": {"code": 250, "message": "OK"}})), ("delivered", None), False),
    (failed(550, "5.1.1 The email account that you tried to reach does not exist"), HARD, False),
    (failed(550, "no such user", **{"enhanced-code": "5.1.1"}), HARD, False),
    (failed(550, "5.2.1 mailbox disabled"), HARD, False),
    (failed(552, "5.2.2 mailbox full"), LOST, False),
    (failed(550, "5.7.1 spam"), LOST, False),
    (failed(550, "refused"), LOST, False),
    (failed(0), LOST, False),
    (mailgun(mailgun_event(**PERMANENT)), LOST, False),
    (mailgun(mailgun_event(**PERMANENT, reason="suppress-bounce")), HARD, False),
    (mailgun(mailgun_event(**PERMANENT, reason="suppress-unsubscribe")), LOST, True),
    (mailgun(mailgun_event(**PERMANENT, reason="suppress-complaint")), LOST, True),
    (mailgun(mailgun_event("failed", severity="temporary", **{"delivery-status": {"code": 550, "message": "5.1.1"}})), NOTED, False),
    (mailgun(mailgun_event("rejected", reject={"reason": "x"})), LOST, False),
    (mailgun(mailgun_event("opened", ip="192.0.2.1")), ("opened", None), False),
    (mailgun(mailgun_event("clicked", url="https://x")), ("clicked", None), False),
    (mailgun(mailgun_event("complained")), ("complained", None), False),
    (mailgun(mailgun_event("unsubscribed")), ("unsubscribed", None), False),
    (mailgun(mailgun_event("stored")), NOTED, False),
    (vonage(vonage_receipt("delivered")), ("delivered", None), False),
    (vonage(vonage_receipt("accepted")), NOTED, False),
    (vonage(vonage_receipt("buffered")), NOTED, False),
    (vonage(vonage_receipt("unknown")), NOTED, False),
    (vonage(vonage_receipt("next_year")), NOTED, False),
    *((vonage(vonage_receipt(status, "3")), GONE, False) for status in ("failed", "rejected", "expired")),
    (vonage(vonage_receipt("rejected", "4")), GONE, False),
    (vonage(vonage_receipt("rejected", "9")), GONE, True),
    *((vonage(vonage_receipt("failed", code)), LOST, False) for code in ("1", "2", "5", "6", "7", "8", "10", "14", "99", "")),
    (ses(ses_event("Send", own={})), ("sent", None), False),
    (ses(ses_event("Delivery")), ("delivered", None), False),
    (ses(ses_event("Bounce", own={"bounceType": "Permanent", "bounceSubType": "General", "feedbackId": "f"})), HARD, False),
    (ses(ses_event("Bounce", own={"bounceType": "Permanent", "bounceSubType": "OnAccountSuppressionList"})), HARD, False),
    (ses(ses_event("Bounce", own={"bounceType": "Transient", "bounceSubType": "MailboxFull"})), SOFT, False),
    (ses(ses_event("Bounce", own={"bounceType": "Undetermined"})), SOFT, False),
    (ses(ses_event("Bounce", own={})), SOFT, False),
    (ses(ses_event("Reject", own={"reason": "Bad content"})), LOST, False),
    (ses(ses_event("Rendering Failure", own={"errorMessage": "x"})), LOST, False),
    (ses(ses_event("Complaint", own={"complaintFeedbackType": "abuse"})), ("complained", None), False),
    (ses(ses_event("Complaint", own={})), ("complained", None), False),
    (ses(ses_event("Complaint", own={"complaintFeedbackType": "not-spam"})), NOTED, False),
    (ses(ses_event("Open", own={"timestamp": iso(NOW - 5_000)})), ("opened", None), False),
    (ses(ses_event("Click", own={"link": "https://x"})), ("clicked", None), False),
    (ses(ses_event("Subscription", own={})), ("unsubscribed", None), False),
    (ses(ses_event("DeliveryDelay", own={"delayType": "MailboxFull"})), NOTED, False),
    (ses(ses_event("Next Year")), NOTED, False),
]  # fmt: skip


@pytest.mark.parametrize(("callback", "wanted", "opted_out"), ROWS)
async def test_event(callback: Callback, wanted: Wanted, opted_out: bool) -> None:
    at = desk(callback.kind)
    assert (await at.post(callback)).status_code == TAKEN[callback.kind]
    (receipt,) = at.broker.receipts
    assert receipt["state"] in states().all
    sent = TEXT if callback.kind == "vonage" else MAIL
    assert receipt["message_id"] == sent["message_id"]
    assert receipt["occurred_at"] < receipt["received_at"] == NOW
    if wanted is NOTED:
        assert at.broker.statuses == []
        return
    (status,) = at.broker.statuses
    assert (status["state"], status["reason"], status["opted_out"]) == (*wanted, opted_out)
    assert status["reason"] is None or status["reason"] in states().reasons[status["state"]]
    assert (status["notification_id"], status["message_id"], status["tenant"]) == (NID, sent["message_id"], "t")
    assert (status["channel"], status["lane"], status["attempt"]) == (sent["channel"], "normal", 1)
    assert status["recipient"] == "addr:" + ids.address_hash(sent["channel"], sent["address"])
    assert sent["address"].strip("+") not in repr(status)


@pytest.mark.parametrize(
    ("callback", "event_id", "provider_message_id"),
    [
        (mailgun(mailgun_event("delivered")), f"delivered:ncV2XwymRUKbPek_MIM-Gw:{NOW_S - 5.25}", "<m-1@mg.shop.example>"),
        (vonage(vonage_receipt("delivered")), "0A0000001234567B:delivered", "0A0000001234567B"),
        (ses(ses_event("Bounce", own={"bounceType": "Permanent", "feedbackId": "f1"})), "Bounce:f1", "0100-ses-1"),
        (ses(ses_event("Delivery")), f"Delivery:{iso(NOW - 5_000)}", "0100-ses-1"),
    ],
)  # fmt: skip
async def test_ids_are_made_of_the_vendors_own(callback: Callback, event_id: str, provider_message_id: str) -> None:
    at = desk(callback.kind)
    await at.post(callback)
    (receipt,), (status,) = at.broker.receipts, at.broker.statuses
    assert receipt["event_id"] == ids.receipt_id(receipt["provider"], provider_message_id, event_id)
    assert receipt["provider_message_id"] == status["provider_message_id"] == provider_message_id


# -- who may tell -----------------------------------------------------------------------------------------------------


def members(callback: Callback) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(callback.body)
    return body


def with_body(callback: Callback, **changed: Any) -> Callback:
    body = {name: value for name, value in {**members(callback), **changed}.items() if value is not None}
    return callback.changed(body=json.dumps(body).encode())


def flips(text: str) -> Iterator[str]:
    """The text with one character changed, for each of them."""
    return (text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :] for at in range(len(text)))


def mailgun_forged() -> Iterator[Callback]:
    genuine = mailgun(mailgun_event("delivered"))
    signature = members(genuine)["signature"]
    for name in ("timestamp", "token", "signature"):
        yield from (with_body(genuine, signature=signature | {name: wrong}) for wrong in flips(signature[name]))
    yield with_body(genuine, signature=signature | {"signature": signature["signature"].upper()})
    yield with_body(genuine, signature=signature | {"signature": "ä"})
    yield with_body(genuine, signature=signature | {"token": signature["token"] + "\r\n"})
    yield from (mailgun(mailgun_event("delivered"), algorithm=other) for other in ("sha1", "sha384", "sha512", "md5"))
    yield mailgun(mailgun_event("delivered"), key="another")


def vonage_forged() -> Iterator[Callback]:
    fields = vonage_receipt("delivered")
    genuine = vonage(fields)
    for name, value in members(genuine).items():
        yield from (with_body(genuine, **{name: wrong}) for wrong in flips(value) if wrong.lower() != value.lower())
    yield from (with_body(genuine, **{name: None}) for name in members(genuine))
    yield with_body(genuine, more="1")
    yield with_body(genuine, **{"client-ref": fields["client-ref"] + "\r\n"})
    yield from (vonage(fields, method) for method in ("sha1", "sha512", "md5", "md5hash", None))
    yield vonage(fields, secret="another")
    yield vonage(fields, None, path=f"/{PATH_SECRET}")


def ses_forged() -> Iterator[Callback]:
    fields = sns_fields(json.dumps(ses_event("Delivery")))
    genuine = sns_posted({**fields, "Signature": sns_signature(fields)})
    for name in ("Message", "Subject", "Timestamp", "Signature"):
        for wrong in flips(members(genuine)[name]):
            yield with_body(genuine, **{name: wrong})
    yield with_body(genuine, Subject=None)
    yield with_body(genuine, Message=fields["Message"] + "\r\n")
    yield ses(ses_event("Delivery"), key=OTHER_SNS_KEY)
    yield ses(ses_event("Delivery"), algorithm=SHA1)
    yield ses(ses_event("Delivery"), algorithm=SHA512)
    yield ses(ses_event("Delivery"), algorithm=SHA1, SignatureVersion="1")
    for name, value in genuine.headers.items():
        if name.startswith("x-amz"):
            yield genuine.changed(headers={**genuine.headers, name: value + "x"})
    yield with_body(genuine, SignatureVersion=None)
    yield with_body(genuine, Signature=None)


@pytest.mark.parametrize("make", [mailgun_forged, vonage_forged, ses_forged])
async def test_what_the_account_did_not_sign_is_refused_and_nothing_is_published(
    make: Callable[[], Iterator[Callback]],
) -> None:
    forged = list(make())
    kind = forged[0].kind
    at, before = desk(kind), counted(kind, "forged")
    for callback in forged:
        answer = await at.post(callback)
        assert (answer.status_code, answer.json()["code"]) == (403, "wrong_signature"), callback.body
    assert at.broker.records == []
    assert len(forged) > 30 and counted(kind, "forged") == before + len(forged)


@pytest.mark.parametrize(
    ("kind", "without", "callback"),
    [
        ("mailgun", {"signing_key": None}, mailgun(mailgun_event("delivered"))),
        ("vonage", {"method": None}, vonage(vonage_receipt("delivered"))),
        ("ses", {"topics": ()}, ses(ses_event("Delivery"))),
    ],
)
async def test_without_its_setting_an_account_reports_nothing(
    kind: str, without: dict[str, Any], callback: Callback
) -> None:
    answer = await desk(kind, **without).post(callback)
    assert (answer.status_code, answer.json()["code"]) == (403, "unknown_account")


def aged(kind: str, age_s: int) -> Callback:
    match kind:
        case "mailgun":
            return mailgun(mailgun_event("delivered"), at=str(NOW_S - age_s))
        case "vonage":
            return vonage(vonage_receipt("delivered", timestamp=str(NOW_S - age_s)))
        case _:
            return ses(ses_event("Delivery"), Timestamp=iso(NOW - age_s * 1000))


@pytest.mark.parametrize(
    ("kind", "window_s", "answer"), [("mailgun", 28_800, 406), ("vonage", 86_400, 403), ("ses", 3_600, 403)]
)
async def test_a_signature_is_good_for_as_long_as_the_vendor_repeats(kind: str, window_s: int, answer: int) -> None:
    at, before = desk(kind), counted(kind, "stale")
    assert (await at.post(aged(kind, window_s + 301))).status_code == answer
    assert (await at.post(aged(kind, -301))).status_code == answer
    assert (at.broker.records, counted(kind, "stale")) == ([], before + 2)
    assert (await at.post(aged(kind, window_s + 300))).status_code == TAKEN[kind]


# -- Mailgun ----------------------------------------------------------------------------------------------------------


async def test_a_mailgun_token_is_good_for_one_body_once_that_is_published() -> None:
    at = desk("mailgun")
    first, second = mailgun(mailgun_event("delivered")), mailgun(mailgun_event("complained"))
    at.broker.away = True
    assert (await at.post(first)).status_code == 503
    at.broker.away = False
    assert [(await at.post(each)).status_code for each in (first, second, first)] == [200, 403, 200]
    assert [status["state"] for status in at.broker.statuses] == ["delivered"]
    assert (await at.post(mailgun(mailgun_event("complained"), token="u" * 50))).status_code == 200


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (None, 406),
        ([], 406),
        ({}, 406),
        (mailgun_event("delivered", id=None), 406),
        (mailgun_event("delivered", message={"headers": None}), 406),
        (mailgun_event("delivered", message={}), 406),
        (mailgun_event("failed", severity="permanent", **{"delivery-status": 7}), 200),
    ],
)
async def test_mailgun_is_told_to_stop_what_is_genuine_and_of_no_use(event: Any, status: int) -> None:
    at, before = desk("mailgun"), counted("mailgun", "malformed")
    assert (await at.post(mailgun(event))).status_code == status
    assert bool(at.broker.records) == (status == 200)
    assert counted("mailgun", "malformed") == before + (status == 406)


# -- Vonage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["md5hash", "md5", "sha1", "sha256", "sha512"])
@pytest.mark.parametrize("form", [False, True])
async def test_vonage_signs_by_the_method_of_the_settings(method: str, form: bool) -> None:
    at = desk("vonage", method=method)
    assert (await at.post(vonage(vonage_receipt("delivered", odd="a&b=c"), method, form=form))).status_code == 204
    assert [status["state"] for status in at.broker.statuses] == ["delivered"]


async def test_vonage_without_signatures_is_known_by_its_path() -> None:
    at = desk("vonage", method=None, callback_secret=PATH_SECRET)
    receipt = vonage_receipt("delivered", timestamp="")
    for path in ("", "/", f"/{PATH_SECRET[:-1]}", f"/{PATH_SECRET}x", f"/{PATH_SECRET}/x"):
        answer = await at.post(vonage(receipt, None, path=path))
        assert answer.status_code in (403, 404)
    assert at.broker.records == []
    assert (await at.post(vonage(receipt, None, path=f"/{PATH_SECRET}"))).status_code == 204
    assert len(at.broker.statuses) == 1


@pytest.mark.parametrize("secret", ["short", "with a blank in between it", "a/slash/in/between/the/words", "ä" * 30])
def test_a_path_secret_that_can_be_guessed_is_refused(secret: str) -> None:
    with pytest.raises(SettingsError, match="provider vo: callback_secret has 20 to 128"):
        create_report_readers([vonage_account(callback_secret=secret)])


async def test_accounts_that_share_a_secret_are_told_apart_by_their_key() -> None:
    at = Desk([vonage_account("first"), vonage_account("second", key="efgh5678")])
    await at.post(vonage(vonage_receipt("delivered", **{"api-key": "efgh5678"})))
    assert [receipt["provider"] for receipt in at.broker.receipts] == ["second"]


async def test_a_tenant_too_long_for_client_ref_leaves_the_message_id() -> None:
    at, before = desk("vonage"), counted("vonage", "no_message")
    await at.post(vonage(vonage_receipt("delivered", **{"client-ref": TEXT["message_id"]})))
    assert [receipt["message_id"] for receipt in at.broker.receipts] == [TEXT["message_id"]]
    assert (at.broker.statuses, counted("vonage", "no_message")) == ([], before + 1)


def incoming(text: str) -> dict[str, Any]:
    fields = vonage_receipt("x", sent=None, text=text, type="text", keyword="STOP")
    return {name: value for name, value in fields.items() if name not in ("status", "err-code")}


async def test_an_incoming_stop_is_about_its_number_and_nothing_of_other_messages_is_kept() -> None:
    at = desk("vonage")
    assert (await at.post(vonage(incoming("Stop! ")))).status_code == 204
    (receipt,) = at.broker.receipts
    assert (receipt["state"], receipt["message_id"], receipt["raw"]) == ("unsubscribed", None, b"")
    before = counted("vonage", "noted")
    assert (await at.post(vonage(incoming("Please do not stop, my number is 0151")))).status_code == 204
    assert (len(at.broker.records), counted("vonage", "noted")) == (1, before + 1)


@pytest.mark.parametrize(
    ("text", "stops"),
    [("STOP", True), (" stop.\n", True), ("Stop all", True), ("UNSUBSCRIBE", True), ("quit", True), ("END", True),
     ("stop it", False), ("", False), ("don't stop", False), ("S T O P", False), ("START", False), ("stop" * 50, False)],
)  # fmt: skip
def test_stop_is_the_whole_of_a_message(text: str, stops: bool) -> None:
    assert says_stop(text) is stops


@pytest.mark.parametrize(
    ("body", "media", "status"),
    [
        (b"[]", "application/json", 400),
        (b'{"a": {}}', "application/json", 400),
        (b'{"a": true}', "application/json", 400),
        (b'{"a": 1.5}', "application/json", 400),
        (b"a=1&a=2", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"a=%ff", "application/x-www-form-urlencoded", 400),
        (b"a", "text/plain", 415),
        (b"a" * 65_537, "application/x-www-form-urlencoded", 413),
    ],
)
async def test_what_vonage_cannot_have_sent_is_a_problem(body: bytes, media: str, status: int) -> None:
    at = desk("vonage")
    assert (await at.post(Callback("vonage", body, {"Content-Type": media}))).status_code == status
    assert at.broker.records == []


# -- SES by SNS -------------------------------------------------------------------------------------------------------

LOOK_ALIKES = [
    "http://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com.evil.example/SimpleNotificationService-1.pem",
    "https://evil.example/sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem",
    "https://s3.amazonaws.com/SimpleNotificationService-1.pem",
    "https://sns.amazonaws.com/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com@evil.example/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com:8443/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem?x",
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem\n",
    "https://sns.eu-central-1.amazonaws.com/x/SimpleNotificationService-1.pem",
    "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com.cn/SimpleNotificationService-1.pem",
    "https://SNS.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem",
    "",
]


@pytest.mark.parametrize("url", LOOK_ALIKES)
async def test_no_certificate_is_fetched_from_where_aws_keeps_none(url: str, aws: Aws) -> None:
    at = desk("ses")
    assert (await at.post(ses(ses_event("Delivery"), SigningCertURL=url))).status_code == 403
    assert (aws.asked, at.broker.records) == ([], [])


@pytest.mark.parametrize("kind", ["Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"])
async def test_a_topic_that_is_not_listed_is_refused_before_anything_is_fetched(kind: str, aws: Aws) -> None:
    theirs = TOPIC.replace("123456789012", "210987654321")
    at = desk("ses")
    answer = await at.post(ses(ses_event("Delivery"), TopicArn=theirs, Type=kind, Token="t", SubscribeURL="https://x"))
    assert (answer.status_code, answer.json()["code"]) == (403, "unknown_account")
    assert (aws.asked, at.broker.records) == ([], [])


async def test_the_certificate_is_fetched_once_and_while_it_cannot_be_the_answer_is_503(aws: Aws) -> None:
    at = desk("ses")
    aws.away = True
    assert [(await at.post(ses(ses_event("Delivery")))).status_code for _ in range(3)] == [503] * 3
    assert aws.asked == [(CERTIFICATE_URL, None)]  # it is not asked again for a minute
    aws.away = False
    at.now += 61_000
    for n in range(5):
        assert (await at.post(ses(ses_event("Delivery", own={"timestamp": iso(NOW - n)})))).status_code == 204
    assert len(aws.asked) == 2
    for answer in (HttpResponse(403, {}, certificate()), HttpResponse(200, {}, b"<html>"), HttpResponse(200, {}, b"")):
        aws.answer = answer
        assert (await desk("ses").post(ses(ses_event("Delivery")))).status_code == 503


def confirmation(kind: str = "SubscriptionConfirmation", **more: str | None) -> Callback:
    return ses(
        "You have chosen to subscribe",
        Type=kind,
        Subject=None,
        **{"Token": "2336412f37", "SubscribeURL": "https://evil.example/", **more},
    )


async def test_a_subscription_of_a_listed_topic_is_confirmed_by_the_api_of_its_region(aws: Aws) -> None:
    at = desk("ses")
    assert (await at.post(confirmation())).status_code == 204
    url, form = aws.asked[-1]
    assert url == "https://sns.eu-central-1.amazonaws.com/"
    assert form is not None and sorted(form.decode().split("&")) == [
        "Action=ConfirmSubscription",
        "Token=2336412f37",
        f"TopicArn={TOPIC.replace(':', '%3A')}",
        "Version=2010-03-31",
    ]
    assert at.broker.records == []
    aws.answer = HttpResponse(500, {}, b"")
    assert (await at.post(confirmation())).status_code == 503
    aws.answer = HttpResponse(400, {}, b"")
    assert (await at.post(confirmation())).status_code == 400
    assert (await at.post(confirmation(Token="a/../b"))).status_code == 400


async def test_an_end_of_a_subscription_is_not_undone(aws: Aws) -> None:
    at = desk("ses")
    assert (await at.post(confirmation("UnsubscribeConfirmation"))).status_code == 204
    assert aws.asked == [(CERTIFICATE_URL, None)]


async def test_the_feedback_of_an_identity_does_not_hide_the_event_with_our_token() -> None:
    at = desk("ses")
    own = {"bounceType": "Permanent", "feedbackId": "f1", "timestamp": iso(NOW - 5_000)}
    for sent in (None, MAIL, None, MAIL):
        assert (await at.post(ses(ses_event("Bounce", sent, own)))).status_code == 204
    assert [receipt["message_id"] for receipt in at.broker.receipts] == [None, MAIL["message_id"]]
    assert len({receipt["event_id"] for receipt in at.broker.receipts}) == 1
    assert [status["state"] for status in at.broker.statuses] == ["bounced"]


@pytest.mark.parametrize(
    ("callback", "status", "receipts"),
    [
        (ses("Successfully validated SNS topic for Amazon SES event publishing."), 204, 0),
        (ses("something else"), 400, 0),
        (ses("[]"), 204, 0),
        (ses({"eventType": "Delivery"}), 204, 0),
        (ses(ses_event("Delivery", own=7)), 204, 1),
        (ses(ses_event("Delivery")).changed(body=b"[]"), 400, 0),
        (ses(ses_event("Delivery")).changed(body=json.dumps(ses_event("Delivery")).encode()), 400, 0),  # raw delivery
        (ses(ses_event("Delivery")).changed(headers={"Content-Type": "text/plain"}), 204, 1),
        (ses(ses_event("Delivery")).changed(headers={"Content-Type": "text/xml"}), 415, 0),
        (ses("x" * 262_144), 413, 0),
        (ses(ses_event("Delivery"), Timestamp="yesterday"), 400, 0),
        (ses(ses_event("Delivery"), Timestamp="2027-99-99T00:00:00Z"), 400, 0),
    ],
)
async def test_odd_messages_of_a_listed_topic(callback: Callback, status: int, receipts: int) -> None:
    at = desk("ses")
    assert (await at.post(callback)).status_code == status
    assert len(at.broker.receipts) == receipts


@pytest.mark.parametrize(
    "arn", ["", "x", TOPIC.replace("sns", "sqs"), TOPIC.replace("eu-central-1", "evil.example/"), TOPIC + ":x"]
)
def test_an_arn_that_is_none_is_named(arn: str) -> None:
    with pytest.raises(SettingsError, match="provider ses: topic_arns"):
        create_report_readers([ses_account(topics=[arn])])


# -- hostile ----------------------------------------------------------------------------------------------------------

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def changes(event: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(sorted({*event, "reason", "severity", "delivery-status"})), _VALUES).map(
        lambda change: {**event, **change}
    )


@given(
    changes(mailgun_event("failed", severity="permanent")),
    changes(ses_event("Bounce")),
    changes(vonage_receipt("failed", "3")),
)
@settings(deadline=None, max_examples=100)
async def test_whatever_a_signed_event_says_it_is_recorded_or_refused(mail: Any, event: Any, text: Any) -> None:
    for callback in (mailgun(mail), ses(event), vonage(text)):
        at = desk(callback.kind)
        answer = await at.post(callback)
        assert answer.status_code < 500
        for status in at.broker.statuses:
            assert status["state"] in states().all
