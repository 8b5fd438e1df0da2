"""Mails that come back: what each says, whom it is about, and that nobody is believed who does not bring back our word."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.callbacks.records import receipt_of, status_of
from runtime import ids
from runtime.callbacks import Subject, attempt_ref_of
from runtime.errors import SettingsError
from tests.support.bounces import (
    ADDRESS,
    bounces_account,
    complaint,
    dsn,
    exim,
    failed,
    mail_of,
    qmail,
    ref_of,
    returned,
    vacation,
    verp,
    word_of,
)
from vendors.bounces import BounceAccount
from vendors.registry import create_bounce_accounts, create_senders
from vendors.smtp.dsn import MAX_BYTES, Reading, read_bounce
from vendors.smtp.sender import Envelope, _commands

NOW = 1_800_000_900_000
SENT = mail_of(user_id=None)
WORD, REF = word_of(SENT["message_id"]), ref_of(SENT)


def account(**more: Any) -> BounceAccount:
    (made,) = create_bounce_accounts([bounces_account(**more)])
    return made


ACCOUNT = account()


def subject_of(sent: Any) -> Subject:
    fields = {name: str(sent[name]) for name in ("message_id", "notification_id", "tenant", "lane", "attempt")}
    recipient = ids.recipient(sent["user_id"], "email", sent["address"])
    return Subject(sent["message_id"], attempt_ref_of(fields), "mail", recipient)


def found(message_id: str) -> Subject | None:
    return subject_of(SENT) if message_id == SENT["message_id"] else None


def read(raw: bytes, find: Any = found, at: int = NOW) -> Reading:
    return read_bounce(raw, ACCOUNT, at, find)


def says(reading: Reading) -> tuple[str, str | None, bool]:
    (report,) = reading.reports
    return report.state, report.reason, report.final


HARD = ("bounced", "hard_bounce", True)
SOFT = ("bounced", "soft_bounce", True)
LOST = ("undelivered", "carrier", True)
NOTED = ("sending", None, False)


@pytest.mark.parametrize(
    ("block", "meaning"),
    [
        (failed("5.1.1", "550 5.1.1 <zoe@example.org>: Recipient address rejected: User unknown"), HARD),
        (failed("5.1.2", "550 Host unknown"), HARD),
        (failed("5.1.10", "556 5.1.10 null MX"), HARD),
        (failed("5.0.0", "550 5.1.1 User unknown"), HARD),
        (failed("5.2.1", "550 5.2.1 disabled"), HARD),
        (failed("5.2.2", "552 5.2.2 mailbox full"), SOFT),
        (failed("4.2.2", "452 4.2.2 mailbox full"), SOFT),
        (failed("5.7.1", "550 5.7.1 spam"), LOST),
        (failed("5.0.0", "550 no"), LOST),
        (failed("5.0.0", None), LOST),
        (failed("4.4.7", None), LOST),
        (failed("4.4.1", "connect to mx.example.org[192.0.2.1]:25: Connection timed out"), LOST),
        (failed("nonsense", "nonsense"), LOST),
        (failed("2.1.5", "250 2.1.5 Ok", action="delivered"), ("delivered", None, True)),
        (failed("4.4.1", "connection timed out", action="delayed"), NOTED),
        (failed("2.0.0", "250 ok", action="relayed"), NOTED),
        (failed("2.0.0", "250 ok", action="Expanded"), NOTED),
        (failed("2.0.0", "250 ok", action="a new word"), ("unknown", None, False)),
    ],
)
@pytest.mark.parametrize("proof", ["verp", "envid", "header"])
def test_what_a_report_says(block: list[tuple[str, str]], meaning: Any, proof: str) -> None:
    per_message = [("Reporting-MTA", "dns; mx"), *([("Original-Envelope-Id", WORD)] if proof == "envid" else [])]
    raw = dsn(
        verp(WORD) if proof == "verp" else ADDRESS,
        block,
        per_message=per_message,
        back=returned(SENT, REF if proof == "header" else None),
    )
    reading = read(raw)
    assert (reading.outcome, says(reading)) == ("read", meaning)
    (report,) = reading.reports
    assert report.subject.attempt_ref == subject_of(SENT).attempt_ref
    assert report.address == "zoe@example.org"
    status = status_of(report, report.subject.attempt_ref, NOW)  # type: ignore[arg-type]
    assert status["recipient"] == ids.recipient(None, "email", "zoe@example.org")
    assert "zoe" not in str(status["detail"])


@pytest.mark.parametrize(
    ("raw", "meaning"),
    [
        (exim(SENT, verp(WORD), None), HARD),
        (exim(SENT, ADDRESS, REF), HARD),
        (qmail(SENT, verp(WORD)), HARD),
        (vacation(verp(WORD)), NOTED),
        (complaint(SENT, REF), ("complained", None, True)),
        (complaint(SENT, REF, "fraud"), ("complained", None, True)),
        (complaint(SENT, REF, "not-spam"), NOTED),
        (complaint(SENT, REF, "a-new-word"), ("unknown", None, False)),
    ],
)
def test_what_other_mails_say(raw: bytes, meaning: Any) -> None:
    reading = read(raw)
    assert (reading.outcome, says(reading)) == ("read", meaning)


# -- what real servers write: Postfix 3.7.11 and Exim 4.96 of Debian, as they wrote it (RET=HDRS, NOTIFY=SUCCESS,FAILURE,DELAY) ---------

REAL = Path(__file__).resolve().parents[1] / "support" / "bounce_mails"
REAL_NID = "018cd0a1-7000-7000-8000-000000000001"
REAL_ADDRESSES = {
    "unknown": "unknown@example.net",
    "full": "full@example.net",
    "later": "later@example.net",
    "fine": "fine@example.net",
    "local": "nobody@local.example",
}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("postfix-unknown-failed", HARD),
        ("postfix-full-failed", SOFT),
        ("postfix-later-delayed", NOTED),
        ("postfix-later-failed", LOST),
        ("postfix-fine-relayed", NOTED),
        ("postfix-local-delivered", ("delivered", None, True)),
        ("exim-unknown-failed", HARD),
        ("exim-full-failed", SOFT),
        ("exim-later-delayed", NOTED),
        ("exim-later-failed", LOST),
        ("exim-local-delayed", NOTED),
        ("exim-local-failed", LOST),
        ("exim-fine-delivered", ("delivered", None, True)),
    ],
)
@pytest.mark.parametrize("stripped", [(), (b"X-Heliograph-Ref",), (b"X-Heliograph-Ref", b"Original-Envelope-I")])
def test_what_a_real_server_writes(name: str, meaning: Any, stripped: tuple[bytes, ...]) -> None:
    """By whichever word is left: the header's, ENVID's, the address'."""
    raw = (REAL / f"{name}.eml").read_bytes()
    for field in stripped:
        raw = raw.replace(field, b"X-Gone")
    address = REAL_ADDRESSES[name.split("-")[1]]
    sent = mail_of(address, notification_id=REAL_NID, user_id=None)
    reading = read(raw, lambda _: subject_of(sent))
    assert (reading.outcome, says(reading)) == ("read", meaning)
    (report,) = reading.reports
    assert report.subject.attempt_ref == subject_of(sent).attempt_ref
    assert report.address == address


def test_every_real_mail_has_a_row() -> None:
    marks = test_what_a_real_server_writes.pytestmark
    (rows,) = (mark.args[1] for mark in marks if mark.args[0] == ("name", "meaning"))
    assert {path.stem for path in REAL.glob("*.eml")} == {name for name, _ in rows}


# -- proof ------------------------------------------------------------------------------------------------------------


def bounce(to: str, back: str = "", envid: str | None = None) -> bytes:
    per_message = [("Reporting-MTA", "dns; mx"), *([("Original-Envelope-Id", envid)] if envid else [])]
    return dsn(to, failed("5.1.1", "550 5.1.1 User unknown"), per_message=per_message, back=back)


OTHER = mail_of("other@example.org")


@pytest.mark.parametrize(
    "raw",
    [
        bounce(verp(word_of(SENT["message_id"], "another secret of twenty"))),
        bounce(verp(word_of(SENT["message_id"], name="mail-2"))),
        bounce(verp(WORD[:26] + word_of(OTHER["message_id"])[26:])),
        *(bounce(verp(WORD[:n] + ("a" if WORD[n] != "a" else "b") + WORD[n + 1 :])) for n in range(0, 42, 5)),
        bounce(ADDRESS, returned(SENT, ref_of(SENT, "another secret of twenty"))),
        bounce(ADDRESS, returned(SENT, ref_of(SENT, name="mail-2"))),
        bounce(ADDRESS, returned(SENT, REF[:-1] + ("A" if REF[-1] != "A" else "E"))),
        bounce(ADDRESS, returned(SENT, REF.replace(".", "A.", 1))),
        bounce(ADDRESS, envid=word_of(SENT["message_id"], "another secret of twenty")),
    ],
)
def test_forged_word_says_nothing(raw: bytes) -> None:
    assert read(raw) == Reading("forged", [])


@pytest.mark.parametrize(
    "raw",
    [
        bounce(ADDRESS),
        bounce(ADDRESS, returned(SENT)),
        bounce("someone@shop.example"),
        vacation(ADDRESS),
        b"",
        b"\0" * 100,
    ],
)
def test_mail_without_a_word_is_unmatched(raw: bytes) -> None:
    assert read(raw).outcome in ("unmatched", "unreadable")
    assert read(raw).reports == []


def test_word_may_not_be_part_of_a_longer_address() -> None:
    assert read(bounce(f"x.{verp(WORD)}")).outcome == "unmatched"
    assert read(bounce(f"{verp(WORD)}.evil.example")).outcome == "unmatched"


def test_address_of_a_report_counts_only_where_the_message_went_to_it() -> None:
    """Who got a mail may write what they like: a complaint in the name of another suppresses nobody."""
    for claimed, address in (("zoe@example.org", "zoe@example.org"), ("victim@example.org", None)):
        raw = complaint(SENT, REF, claimed=claimed).replace(
            b"To: zoe@example.org\r\nSubject", b"To: x@example.org\r\nSubject"
        )
        (report,) = read(raw).reports
        assert report.address == address
        receipt = receipt_of(report, raw, NOW, ["t", "t2"])
        assert bool(receipt["tenants"]) is (address is not None)


def test_mail_whose_reference_is_not_there_yet_waits_for_a_minute_and_is_then_kept_without_a_message() -> None:
    raw = bounce(verp(WORD))
    event = 1_800_000_000_000
    assert read(raw, lambda _: None, event + 59_000).outcome == "waits"
    reading = read(raw, lambda _: None, event + 61_000)
    (report,) = reading.reports
    assert (reading.outcome, report.subject.attempt_ref, report.subject.message_id) == (
        "read",
        None,
        SENT["message_id"],
    )


def test_message_to_a_user_keeps_its_recipient() -> None:
    sent = mail_of(user_id="u1")
    (report,) = read(bounce(verp(WORD)), lambda _: subject_of(sent)).reports
    assert report.subject.recipient == "u1"


def test_repetition_has_the_same_id_and_another_report_another() -> None:
    one, again = (read(bounce(verp(WORD))).reports[0].provider_event_id for _ in range(2))
    other = read(dsn(verp(WORD), failed("5.1.1", None), number=2)).reports[0].provider_event_id
    assert one == again != other


# -- hostile mails ----------------------------------------------------------------------------------------------------


def nested(depth: int, kind: str) -> bytes:
    if kind == "rfc822":
        return b"Content-Type: message/rfc822\r\n\r\n" * depth + b"x"
    head = b"".join(b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n) for n in range(depth))
    return head + b"\r\nx"


@pytest.mark.parametrize("kind", ["rfc822", "multipart"])
@pytest.mark.parametrize("depth", [30, 3_000])
def test_nested_mail_is_unreadable(kind: str, depth: int) -> None:
    assert read(f"To: {verp(WORD)}\r\n".encode() + nested(depth, kind)).outcome == "unreadable"


def test_parts_and_blocks_are_bounded() -> None:
    parts = b"".join(b"--b\r\n\r\nx\r\n" for _ in range(20_000))
    raw = f'To: {verp(WORD)}\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n'.encode() + parts
    assert read(raw).outcome == "unreadable"
    blocks = "\r\n\r\n".join(["Action: failed\r\nStatus: 5.1.1"] * 5_000)
    reports = read(dsn(verp(WORD), [("X", f"y\r\n\r\n{blocks}")])).reports
    assert 1 < len(reports) <= 10
    assert [bool(report.raw) for report in reports] == [True] + [False] * (len(reports) - 1)


def test_only_the_head_of_a_mail_is_read() -> None:
    raw = bounce(verp(WORD)) + b"x" * (2 * MAX_BYTES)
    assert read(raw).outcome == "read"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2_000), st.integers(0, 2**32))
def test_no_mail_makes_the_reader_raise(noise: bytes, seed: int) -> None:
    rng = random.Random(seed)
    for base in (exim(SENT, verp(WORD), REF), complaint(SENT, REF), qmail(SENT, verp(WORD))):
        at = rng.randrange(len(base))
        read(base[:at] + noise + base[at + rng.randrange(40) :])
    read(noise)


def test_ten_thousand_forged_reports_are_forged() -> None:
    rng = random.Random(16)
    for n in range(10_000):
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz234567", k=42))
        raw = bounce(verp(word)) if n % 2 else bounce(ADDRESS, envid=WORD[: rng.randrange(26, 41)].ljust(42, "a"))
        reading = read(raw)
        assert (reading.outcome, reading.reports) == ("forged", [])


# -- what goes out ----------------------------------------------------------------------------------------------------


def envelope(kind: str = "smtp", **fields: Any) -> Envelope:
    more: dict[str, Any] = (
        {} if kind == "smtp" else {"kind": "gmail", "host": "127.0.0.1", "username": "a@shop.example", "password": "p"}
    )
    (sender,) = create_senders("email", [bounces_account(**more)])
    made: Envelope = sender.prepare({**SENT, **fields})  # type: ignore[attr-defined]
    return made


def test_mail_has_its_words_and_its_commands_ask_for_a_report_where_the_server_offers_them() -> None:
    sent = envelope()
    assert sent.sender == verp(WORD)
    assert f"\r\nX-Heliograph-Ref: {REF}\r\n".encode() in sent.mail
    assert _commands(sent, dsn=False) == (f"MAIL FROM:<{verp(WORD)}>\r\n", "RCPT TO:<zoe@example.org>\r\n", "DATA\r\n")
    assert _commands(sent, dsn=True)[:2] == (
        f"MAIL FROM:<{verp(WORD)}> RET=HDRS ENVID={WORD}\r\n",
        "RCPT TO:<zoe@example.org> NOTIFY=FAILURE ORCPT=rfc822;zoe@example.org\r\n",
    )
    assert "ORCPT=rfc822;a+2Bb+3Dc@example.org" in _commands(envelope(address="a+b=c@example.org"), dsn=True)[1]
    assert len(verp(WORD).partition("@")[0]) <= 64


def test_gmail_keeps_its_envelope_sender_and_has_the_header() -> None:
    sent = envelope("gmail")
    assert (sent.sender, f"X-Heliograph-Ref: {REF}".encode() in sent.mail) == ("no-reply@shop.example", True)


def test_account_without_bounces_sends_as_before() -> None:
    (sender,) = create_senders("email", [bounces_account(bounces={}).model_copy(update={"bounces": None})])
    sent = sender.prepare(SENT)  # type: ignore[attr-defined]
    assert (sent.sender, sent.word, b"X-Heliograph-Ref" in sent.mail) == ("no-reply@shop.example", None, False)
    assert sender.reference(SENT, None) is None  # type: ignore[attr-defined]
    assert _commands(sent, dsn=True)[0] == "MAIL FROM:<no-reply@shop.example>\r\n"


def test_message_of_a_stranger_is_sent_without_a_word() -> None:
    sent = envelope(message_id="not-a-uuid")
    assert (sent.sender, sent.word) == ("no-reply@shop.example", None)


@pytest.mark.parametrize(
    ("bounces", "problem"),
    [
        ({"secret": None}, "give bounces.secret"),
        ({"secret": "short"}, "bounces.secret has 20 characters or more"),
        ({"address": "no address"}, "bounces.address is one address"),
        ({"address": "a+b@shop.example"}, "no \\+ before its @"),
        ({"address": f"{'a' * 30}@shop.example"}, "at most 21 characters"),
        ({"done_folder": "INBOX"}, "bounces.done_folder is another one"),
        ({"nonsense": 1}, "bounces.nonsense"),
    ],
)
def test_wrong_settings_are_refused_and_show_no_secret(bounces: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as refused:
        account(bounces=bounces)
    assert "5ecret" not in str(refused.value)
