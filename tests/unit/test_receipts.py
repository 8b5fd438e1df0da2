"""What vendors report back: each event's meaning by a second, hand-written table; who may tell; batches; time; repetitions."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.hashes import SHA384, SHA512
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.callbacks import app as callbacks_app
from runtime import ids
from runtime.callbacks import NO_SUBJECT, AttemptRef, Subject, subject_of_token, subject_token, token_fields
from runtime.errors import SettingsError
from runtime.metrics import CALLBACKS, RECEIPTS_TAKEN
from schemas.events import states
from tests.support.made import NOW, message
from tests.support.receipts import (
    MAIL,
    NID,
    NOW_S,
    OTHER_KEY,
    Callback,
    Desk,
    sendgrid,
    sendgrid_account,
    sendgrid_event,
    sendgrid_signed,
)
from vendors.registry import create_report_readers


def counted(kind: str, outcome: str) -> float:
    return float(CALLBACKS.labels(kind, outcome)._value.get())


def desk(**more: Any) -> Desk:
    return Desk([sendgrid_account()], **more)


# -- the token --------------------------------------------------------------------------------------------------------


def test_a_token_brings_the_subject_back_in_characters_that_every_vendor_takes() -> None:
    sent = message(notification_id=NID, tenant="shop.eu", lane="bulk", attempt=300)
    token = subject_token(sent, "sendgrid-1")
    assert token is not None and token.replace("-", "").replace("_", "").isalnum()
    assert subject_of_token(token) == Subject(
        sent["message_id"], AttemptRef(NID, sent["message_id"], "shop.eu", "bulk", 300), "sendgrid-1"
    )
    longest = subject_token(message(notification_id=NID, tenant="t" * 63), "p" * 64)
    assert longest is not None and len(longest) <= 256  # of an SES tag


@pytest.mark.parametrize(
    "fields", [{"message_id": "x"}, {"notification_id": "x"}, {"lane": "slow"}, {"attempt": -1}, {"attempt": 1 << 16}]
)
def test_what_is_not_ours_has_no_token_and_is_sent_all_the_same(fields: dict[str, Any]) -> None:
    sent = message(**{"notification_id": NID, **fields})
    assert subject_token(sent) is None
    assert token_fields(sent, "p") == {"message_id": sent["message_id"]}


def test_a_token_of_something_else_is_about_nothing() -> None:
    token = subject_token(MAIL, "sg") or ""
    for wrong in (
        "",
        token[:-8],
        token + "=",
        "B" + token[1:],
        "_" * 60,
        "A" * 300,
        token.replace(token[5], "ä"),
        7,
        None,
    ):
        assert subject_of_token(wrong).attempt_ref is None
    assert subject_of_token("x" * 60) == NO_SUBJECT


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda raw: raw.hex()))
def test_no_token_makes_it_stumble(text: str) -> None:
    assert isinstance(subject_of_token(text), Subject)


# -- the table, a second time -----------------------------------------------------------------------------------------

HARD, SOFT = ("bounced", "hard_bounce"), ("bounced", "soft_bounce")
LOST = ("undelivered", "carrier")
NOTED = None
"""Kept as a receipt; no status is made of it."""

Row = tuple[dict[str, Any], tuple[str, str | None] | None, bool]
SENDGRID: list[Row] = [
    ({"event": "processed"}, ("sent", None), False),
    ({"event": "deferred", "response": "400 try again", "attempt": "5"}, NOTED, False),
    ({"event": "delivered", "response": "250 OK"}, ("delivered", None), False),
    ({"event": "bounce", "type": "bounce", "status": "5.1.1"}, HARD, False),
    ({"event": "bounce", "type": "bounce", "status": "5.1.10"}, HARD, False),
    ({"event": "bounce", "type": "bounce", "status": "5.2.1"}, HARD, False),
    ({"event": "bounce", "type": "bounce", "status": "5.2.2"}, SOFT, False),
    ({"event": "bounce", "type": "bounce", "status": "5.7.1"}, SOFT, False),
    ({"event": "bounce", "type": "bounce", "status": "4.2.1"}, SOFT, False),
    ({"event": "bounce", "type": "bounce", "bounce_classification": "Invalid Address"}, HARD, False),
    ({"event": "bounce", "type": "bounce", "bounce_classification": "Mailbox Unavailable"}, SOFT, False),
    ({"event": "bounce", "type": "bounce"}, SOFT, False),
    ({"event": "bounce", "type": "blocked", "status": "5.1.1", "bounce_classification": "Invalid Address"}, SOFT, False),
    ({"event": "dropped", "reason": "Bounced Address"}, HARD, False),
    ({"event": "dropped", "reason": "Invalid"}, HARD, False),
    ({"event": "dropped", "reason": "Invalid SMTPAPI header"}, LOST, False),
    ({"event": "dropped", "reason": "Unsubscribed Address"}, LOST, True),
    ({"event": "dropped", "reason": "Spam Reporting Address"}, LOST, True),
    ({"event": "dropped", "reason": "Spam Content"}, LOST, False),
    ({"event": "dropped", "reason": "something of next year"}, LOST, False),
    ({"event": "dropped"}, LOST, False),
    ({"event": "open"}, ("opened", None), False),
    ({"event": "click", "url": "https://x"}, ("clicked", None), False),
    ({"event": "spamreport"}, ("complained", None), False),
    ({"event": "unsubscribe"}, ("unsubscribed", None), False),
    ({"event": "group_unsubscribe", "asm_group_id": 7}, ("unsubscribed", None), False),
    ({"event": "group_resubscribe", "asm_group_id": 7}, NOTED, False),
    ({"event": "a_word_of_next_year"}, NOTED, False),
]  # fmt: skip


@pytest.mark.parametrize(("event", "wanted", "opted_out"), SENDGRID)
async def test_sendgrid_event(event: dict[str, Any], wanted: tuple[str, str | None] | None, opted_out: bool) -> None:
    at = desk()
    assert (await at.post(sendgrid([sendgrid_event(**event)]))).status_code == 204
    (receipt,) = at.broker.receipts
    assert receipt["state"] in states().all
    assert (receipt["provider"], receipt["provider_message_id"]) == ("sg", "14c5d75ce93.dfd.64b469")
    assert (receipt["message_id"], receipt["occurred_at"], receipt["received_at"]) == (
        MAIL["message_id"],
        NOW - 5_000,
        NOW,
    )
    assert json.loads(receipt["raw"])["event"] == event["event"]
    if wanted is NOTED:
        assert at.broker.statuses == []
        return
    (status,) = at.broker.statuses
    assert (status["state"], status["reason"], status["opted_out"]) == (*wanted, opted_out)
    assert status["reason"] is None or status["reason"] in states().reasons[status["state"]]
    assert (status["notification_id"], status["message_id"], status["tenant"]) == (NID, MAIL["message_id"], "t")
    assert (status["lane"], status["attempt"], status["channel"], status["provider"]) == ("normal", 1, "email", "sg")
    assert (status["occurred_at"], status["recipient"]) == (
        NOW - 5_000,
        "addr:" + ids.address_hash("email", MAIL["address"]),
    )
    assert "zoe@" not in repr(status)


@pytest.mark.parametrize(
    ("given_id", "ours"),
    [
        ("14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0", "14c5d75ce93.dfd.64b469"),
        ("gHOQ4ly2QpOhJRM1b9gOYg.recvd-6c9d-1-0.0", "gHOQ4ly2QpOhJRM1b9gOYg"),
        ("DVwQiUO2QGqjmCXIbHkGaw.filterdrecv-p3mdw1-1.0", "DVwQiUO2QGqjmCXIbHkGaw"),
        ("plain", "plain"),
        (None, "delivered-1"),
    ],
)
async def test_the_id_of_the_mail_is_the_one_that_the_answer_had(given_id: str | None, ours: str) -> None:
    at = desk()
    await at.post(sendgrid([sendgrid_event("delivered", sg_message_id=given_id)]))
    assert [status["provider_message_id"] for status in at.broker.statuses] == [ours]


# -- who may tell -----------------------------------------------------------------------------------------------------

SIGNED = sendgrid(b'[{"event": "delivered", "sg_event_id": "e1"},\r\n{"event": "open", "sg_event_id": "e2"}]\r\n')
HEADERS = dict(SIGNED.headers)
TIMESTAMP, SIGNATURE = list(HEADERS)[1:]


def flipped(text: str, at: int) -> str:
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


FORGED = {
    **{f"byte {at}": SIGNED.changed(body=SIGNED.body[:at] + bytes([SIGNED.body[at] ^ 1]) + SIGNED.body[at + 1 :])
       for at in range(len(SIGNED.body))},
    **{f"signature {at}": SIGNED.changed(headers=HEADERS | {SIGNATURE: flipped(HEADERS[SIGNATURE], at)})
       for at in range(len(HEADERS[SIGNATURE]))},
    **{f"time {at}": SIGNED.changed(headers=HEADERS | {TIMESTAMP: flipped(HEADERS[TIMESTAMP], at)})
       for at in range(len(HEADERS[TIMESTAMP]))},
    "no signature": SIGNED.changed(headers={n: v for n, v in HEADERS.items() if n != SIGNATURE}),
    "no time": SIGNED.changed(headers={n: v for n, v in HEADERS.items() if n != TIMESTAMP}),
    "empty signature": SIGNED.changed(headers=HEADERS | {SIGNATURE: ""}),
    "a signature that is no ASCII": SIGNED.changed(headers=HEADERS | {SIGNATURE: "\u00e9"}),
    "line ends": SIGNED.changed(body=SIGNED.body.replace(b"\r\n", b"\n")),
    "a line end less": SIGNED.changed(body=SIGNED.body.rstrip()),
    "another key": sendgrid(SIGNED.body, key=OTHER_KEY),
    "SHA-384": sendgrid(SIGNED.body, algorithm=SHA384),
    "SHA-512": sendgrid(SIGNED.body, algorithm=SHA512),
    "unsigned": Callback("sendgrid", SIGNED.body, {"Content-Type": "application/json"}),
}  # fmt: skip


async def test_what_the_account_did_not_sign_is_refused_and_nothing_is_published() -> None:
    at, before = desk(), counted("sendgrid", "forged")
    for name, callback in FORGED.items():
        answer = await at.post(callback)
        assert (answer.status_code, answer.json()["code"]) == (403, "wrong_signature"), name
    assert at.broker.records == []
    assert counted("sendgrid", "forged") == before + len(FORGED)
    assert (await at.post(SIGNED)).status_code == 204


async def test_without_a_key_there_is_no_account_that_could_report() -> None:
    answer = await Desk([sendgrid_account(events_key=None)]).post(SIGNED)
    assert (answer.status_code, answer.json()["code"]) == (403, "unknown_account")


@pytest.mark.parametrize(("signer", "named", "wanted"), [("a", "b", "a"), ("both", "b", "b"), ("a", "elsewhere", "a")])
async def test_an_account_speaks_for_itself_alone(signer: str, named: str, wanted: str) -> None:
    other = sendgrid_account("b") if signer == "both" else sendgrid_account("b", OTHER_KEY)
    at = Desk([sendgrid_account("a"), other])
    await at.post(sendgrid([sendgrid_event("delivered", provider=named)]))
    assert [receipt["provider"] for receipt in at.broker.receipts] == [wanted]


@pytest.mark.parametrize("key", ["", "x", "QQ==", "MFkwEwYHKoZIzj0CAQ=="])
def test_a_key_that_is_none_is_named(key: str) -> None:
    with pytest.raises(SettingsError, match="provider sg: events_key"):
        create_report_readers([sendgrid_account(events_key=key)])


DAY_S, SKEW_S = 86_400, 300


@pytest.mark.parametrize(
    ("age_s", "status"),
    [(0, 204), (DAY_S + SKEW_S, 204), (DAY_S + SKEW_S + 1, 403), (-SKEW_S, 204), (-SKEW_S - 1, 403)],
)
async def test_a_signature_is_good_for_as_long_as_the_vendor_repeats(age_s: int, status: int) -> None:
    at, before = desk(), counted("sendgrid", "stale")
    answer = await at.post(sendgrid([sendgrid_event("delivered")], at=str(NOW_S - age_s)))
    assert answer.status_code == status
    assert bool(at.broker.records) == (status == 204)
    assert counted("sendgrid", "stale") == before + (status == 403)


# -- time -------------------------------------------------------------------------------------------------------------


ODD: list[Any] = [None, "soon", True, -1, 10**30, "9" * 400, [], {}]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (NOW_S - 3_600, NOW - 3_600_000),
        (NOW_S - 3_600.25, NOW - 3_600_250),
        (str(NOW_S - 60), NOW - 60_000),
        (NOW_S + 200, NOW),
        (NOW_S + 900, NOW),
        (NOW_S - 40 * DAY_S, NOW),
        *((odd, NOW) for odd in ODD),
    ],
)
async def test_an_event_happened_when_the_vendor_says_if_that_can_be(said: Any, wanted: int) -> None:
    at = desk()
    assert (await at.post(sendgrid([sendgrid_event("delivered", timestamp=said)]))).status_code == 204
    assert [status["occurred_at"] for status in at.broker.statuses] == [wanted]


# -- batches ----------------------------------------------------------------------------------------------------------


async def test_a_batch_is_published_then_answered_once_and_the_bad_are_counted() -> None:
    good = [sendgrid_event("delivered", sg_event_id=f"e{n}") for n in range(50)]
    bad: list[Any] = [
        7, None, [], {}, "event", sendgrid_event("delivered", sg_event_id=None), sendgrid_event("delivered", sg_event_id="x" * 101),
        sendgrid_event("delivered", sg_event_id="ä"), sendgrid_event("x") | {"event": 7}, sendgrid_event("delivered", fat="x" * 300_000),
    ]  # fmt: skip
    mixed = good + bad
    random.Random(1).shuffle(mixed)
    at, before = desk(), counted("sendgrid", "malformed")
    taken = float(RECEIPTS_TAKEN.labels("sendgrid", "delivered")._value.get())
    assert (await at.post(sendgrid(mixed))).status_code == 204
    assert (len(at.broker.receipts), len(at.broker.statuses)) == (50, 50)
    assert counted("sendgrid", "malformed") == before + len(bad)
    assert float(RECEIPTS_TAKEN.labels("sendgrid", "delivered")._value.get()) == taken + 50


async def test_an_event_twice_in_a_batch_and_in_the_next_is_one() -> None:
    at, event = desk(), sendgrid_event("delivered")
    before = counted("sendgrid", "repeated")
    assert (await at.post(sendgrid([event, event]))).status_code == 204
    assert (await at.post(sendgrid([event, sendgrid_event("open")]))).status_code == 204
    assert [receipt["state"] for receipt in at.broker.receipts] == ["delivered", "opened"]
    assert counted("sendgrid", "repeated") == before + 2


async def test_nothing_of_a_batch_is_confirmed_that_the_broker_does_not_have() -> None:
    at = desk()
    at.broker.away = True
    callback = sendgrid([sendgrid_event("delivered"), sendgrid_event("open")])
    answer = await at.post(callback)
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
    at.broker.away = False
    assert (await at.post(callback)).status_code == 204
    assert [status["state"] for status in at.broker.statuses] == ["delivered", "opened"]


async def test_an_event_without_our_token_is_kept_and_counted() -> None:
    at, before = desk(), counted("sendgrid", "no_message")
    assert (await at.post(sendgrid([sendgrid_event("bounce", sent=None, status="5.1.1")]))).status_code == 204
    assert (len(at.broker.receipts), at.broker.statuses) == (1, [])
    assert counted("sendgrid", "no_message") == before + 1


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{}", {}, 400),
        (b"[NaN]", {}, 400),
        (b"[" * 5_000, {}, 400),
        (b'["\xff"]', {}, 400),
        (b"[]", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (b"[]", {"Content-Encoding": "gzip"}, 415),
        (b" " * ((1 << 20) + 1), {}, 413),
    ],
)
async def test_what_cannot_be_read_is_a_problem(body: bytes, headers: dict[str, str], status: int) -> None:
    at, before = desk(), counted("sendgrid", "malformed")
    answer = await at.post(Callback("sendgrid", body, sendgrid_signed(body) | headers))
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert counted("sendgrid", "malformed") == before + 1
    assert (await at.post(sendgrid([]))).status_code == 204
    assert at.broker.records == []


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from([*sendgrid_event("bounce"), "type", "status", "reason", "bounce_classification"])


@given(st.lists(st.dictionaries(_NAMES, _VALUES) | _VALUES, max_size=4))
@settings(deadline=None, max_examples=200)
async def test_whatever_a_signed_event_says_it_is_recorded_or_passed_over(changes: list[Any]) -> None:
    events = [sendgrid_event("bounce") | change if isinstance(change, dict) else change for change in changes]
    at = desk()
    body = json.dumps(events, ensure_ascii=True).encode()
    assert (await at.post(sendgrid(body))).status_code in (204, 400)  # 400: a lone surrogate is no JSON text
    for status in at.broker.statuses:
        assert status["state"] in states().all


async def test_bodies_of_strangers_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    at, callback = desk(), sendgrid([sendgrid_event("delivered")])
    monkeypatch.setattr(callbacks_app, "MAX_READING", len(callback.body) - 1)
    before = counted("sendgrid", "unavailable")
    answer = await at.post(callback)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_now")
    assert counted("sendgrid", "unavailable") == before + 1
    monkeypatch.setattr(callbacks_app, "MAX_READING", len(callback.body))
    assert (await at.post(callback)).status_code == 204  # what was held is given back


# -- opt-outs ---------------------------------------------------------------------------------------------------------

HASH = "addr:" + ids.address_hash("email", MAIL["address"])


@pytest.mark.parametrize("event", ["spamreport", "unsubscribe", "group_unsubscribe"])
@pytest.mark.parametrize(("own", "wanted"), [((), ["t"]), (("shop", "t"), ["shop", "t"])])
async def test_an_opt_out_names_its_tenants_and_its_recipient(
    event: str, own: tuple[str, ...], wanted: list[str]
) -> None:
    at = Desk([sendgrid_account(tenants=own)])
    await at.post(sendgrid([sendgrid_event(event)]))
    (receipt,) = at.broker.receipts
    assert (receipt["tenants"], receipt["recipient"], receipt["channel"]) == (wanted, HASH, "email")


async def test_a_drop_for_an_opt_out_is_one_and_a_bounce_is_none() -> None:
    at = Desk([sendgrid_account(tenants=["shop"])])
    dropped = sendgrid_event("dropped", reason="Unsubscribed Address", sg_event_id="d")
    await at.post(sendgrid([dropped, sendgrid_event("bounce", status="5.1.1"), sendgrid_event("delivered")]))
    assert [receipt["tenants"] for receipt in at.broker.receipts] == [["shop", "t"], [], []]
    assert [receipt["recipient"] for receipt in at.broker.receipts] == [HASH, None, None]


async def test_an_opt_out_without_a_message_is_one_for_the_accounts_tenants_alone() -> None:
    before, lost = counted("sendgrid", "opted_out"), counted("sendgrid", "no_message")
    at = Desk([sendgrid_account(tenants=["shop"])])
    await at.post(sendgrid([sendgrid_event("spamreport", sent=None)]))
    assert [receipt["tenants"] for receipt in at.broker.receipts] == [["shop"]]
    assert (at.broker.statuses, counted("sendgrid", "opted_out")) == ([], before + 1)
    at = Desk([sendgrid_account()])
    await at.post(sendgrid([sendgrid_event("spamreport", sent=None)]))
    assert [receipt["tenants"] for receipt in at.broker.receipts] == [[]]
    assert counted("sendgrid", "no_message") == lost + 1


def test_a_tenant_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="tenant"):
        sendgrid_account(tenants=["a:b"])
