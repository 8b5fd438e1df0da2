"""Mails built by hand, read back by two parsers: exactly the intended recipient and headers, whatever comes in."""

from __future__ import annotations

import email
import email.policy
from email.header import decode_header, make_header
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.made import message
from vendors.mime import MailError, build_mail, encode_words, is_plain_address, parse_from

NOW = 1_800_000_000_000
FROM = parse_from("Heliograph <no-reply@example.org>")
HEADERS = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version"]


def read(mail: bytes) -> tuple[Any, Any]:
    """Parsed by the legacy and by the modern policy."""
    return email.message_from_bytes(mail), BytesParser(policy=email.policy.default).parsebytes(mail)


def check(mail: bytes, subject: str, text: str | None, html: str | None) -> None:
    legacy, modern = read(mail)
    for parsed in (legacy, modern):
        names = [name for name in parsed.keys() if not name.startswith("Content-")]  # noqa: SIM118
        assert names == HEADERS
        assert parsed.get_all("To") == ["a@example.org"]
        assert parsed.defects == []
    assert str(make_header(decode_header(legacy["Subject"]))) == subject
    bodies = {
        p.get_content_subtype(): p.get_payload(decode=True).decode() for p in legacy.walk() if not p.is_multipart()
    }
    for subtype, body in (("plain", text), ("html", html)):
        if body is not None:
            assert bodies[subtype].replace("\r\n", "\n") == body.replace("\r\n", "\n")


_SUBJECTS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=300).map(
    lambda text: " ".join(text.split())
)
_BODIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=500).map(lambda text: text.replace("\r", ""))


@given(_SUBJECTS, _BODIES, st.none() | _BODIES)
def test_mail_reads_back_as_it_was_meant(subject: str, text: str, html: str | None) -> None:
    mail = build_mail(message(subject=subject, text=text, html=html), FROM, NOW)
    check(mail, subject, text, html)
    assert all(len(line) <= 998 for line in mail.split(b"\r\n"))
    assert b"\n" not in mail.replace(b"\r\n", b"")


@pytest.mark.parametrize("subject", ["a\r\nBcc: x@y.z", "a\nb", "a\0b", "a\u2028b", "a\x85b", "\ud800"])
def test_subject_with_a_control_character_is_refused(subject: str) -> None:
    with pytest.raises(MailError):
        build_mail(message(subject=subject), FROM, NOW)


def test_subject_that_looks_encoded_is_shown_as_it_is() -> None:
    subject = "=?utf-8?q?=0ABcc=3A_e=40x.y?="
    check(build_mail(message(subject=subject), FROM, NOW), subject, "T", None)


@pytest.mark.parametrize(
    "address",
    [
        "a@example.org\r\nRCPT TO:<x@y.z>",
        "a@example.org, b@example.org",
        "<a@example.org>",
        "a b@example.org",
        "a@",
        "@b",
        "a",
        "a@b@c",
        '"a"@example.org',
        "a@[127.0.0.1]",
        "ä@example.org",
        "a@example.org\0",
        "a;b@example.org",
        "=?utf-8?q?x=40evil.example=3e?=@example.com",
        "a@=?utf-8?b?eA==?=.example",
    ],
)
def test_address_that_is_not_one_plain_address_is_refused(address: str) -> None:
    assert not is_plain_address(address)
    with pytest.raises(MailError):
        build_mail(message(address=address), FROM, NOW)


def test_from_address_with_hostile_name_is_refused_and_unicode_is_encoded() -> None:
    for text in ("=?utf-8?q?x?= <a@b.c>", "no address", "A <a@b.c\nBcc: x>"):
        with pytest.raises(MailError):
            parse_from(text)
    assert parse_from("Jürgen <a@example.org>").header.startswith("=?utf-8?b?")
    assert parse_from('"Smith, J." <a@example.org>').header == '"Smith, J." <a@example.org>'
    assert parse_from('"Shop (EU)" <a@example.org>').header == parse_from("Shop (EU) <a@example.org>").header
    assert parse_from("a@example.org").header == parse_from("<a@example.org>").header == "a@example.org"


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("info@shop.example <no-reply@shop.example>", "in quotes"),
        ("Shop, Inc. <a@shop.example>", "in quotes"),
        ("Shop: x <a@shop.example>", "in quotes"),
        ("Shop; x <a@shop.example>", "in quotes"),
        ("Shop <a@bücher.example>", "xn--"),
        ("a@shop.example, b@shop.example", "must be an e-mail address"),
        ("<a@shop.example> <b@shop.example>", "must be an e-mail address"),
        ("Shop <=?utf-8?q?x?=@shop.example>", "must be an e-mail address"),
        ("", "must be an e-mail address"),
    ],
)
def test_from_address_that_could_be_read_in_two_ways_is_refused_with_advice(text: str, advice: str) -> None:
    with pytest.raises(MailError, match=advice):
        parse_from(text)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200), st.booleans())
def test_no_line_of_a_header_is_longer_than_76_characters(text: str, quote: bool) -> None:
    for header in ("From", "Subject", "X-Some-Long-Name"):
        for line in f"{header}: {encode_words(text, header, quote=quote)}".split("\r\n"):
            assert len(line) <= 76


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=120).filter(str.strip),
    st.sampled_from(["a@b.example", "a" * 40 + "@" + "b" * 30 + ".example"]),
)
def test_from_line_is_folded_before_it_is_too_long(name: str, address: str) -> None:
    if "=?" in name:
        return
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    header = parse_from(f'"{quoted}" <{address}>').header
    assert all(len(line) <= 76 or line == f" <{address}>" for line in f"From: {header}".split("\r\n"))
    assert header.endswith(f"<{address}>")


def test_message_id_is_the_same_on_every_attempt() -> None:
    first, second = (email.message_from_bytes(build_mail(message(attempt=n), FROM, NOW + n)) for n in (1, 2))
    assert first["Message-ID"] == second["Message-ID"] == f"<{message()['message_id']}@example.org>"
