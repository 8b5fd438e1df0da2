"""Hostile names, subjects and addresses in a mail, read back by the standard library and by a strict reader of our own."""

from __future__ import annotations

import base64
import email
import email.policy
import re
from email.parser import BytesParser
from email.utils import getaddresses

import pytest

from tests.support.made import message
from vendors.mime import FromAddress, MailError, build_mail, parse_from

NOW = 1_800_000_000_000
HEADERS = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Auto-Submitted",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
]
SENDER = "no-reply@example.org"
RECIPIENT = "a@example.org"
TEXTS = [
    "a\r\nBcc: x@evil.test",
    "a\nBcc: x@evil.test",
    "a\rBcc: x@evil.test",
    "a\r\n\r\n<script>",
    "a\0b",
    "a\x0bb",
    "a\x0cb",
    "a\x85b",
    "a\u2028Bcc: x@evil.test",
    "a\u2029b",
    "\ud800",
    "\x7f",
    "\x1b[31m",
    "=?utf-8?q?=0D=0ABcc:_x@evil.test?=",
    "=?utf-8?b?DQpCY2M6IHhAZXZpbC50ZXN0?=",
    "=?x?=",
    "?=",
    "=?",
    "a" * 2_000,
    "ä" * 2_000,
    "🛰" * 300,
    " leading",
    "trailing ",
    "\ttab",
    "a  b",
    '"quoted"',
    "back\\slash",
    "a, b",
    "x <x@evil.test>",
    "x@evil.test, y@evil.test",
    "a;b:c",
    "(comment)",
    "<>",
    "",
    " ",
    "\u202eevil",
    "\u200b",
    "e\u0301",
    "a" * 70,
    "a" * 71,
    "Fwd: [x] 100%",
    "undisclosed-recipients:;",
]
ADDRESSES = [
    "",
    " ",
    "a",
    "@",
    "a@",
    "@b.c",
    "a@b@c",
    "a b@c.d",
    "a@b c.d",
    "a\r\nBcc: x@evil.test",
    "a@b.c\r\nRCPT TO:<x@evil.test>",
    "a@b.c\n",
    "a@b.c\0",
    "<a@b.c>",
    "a@b.c>",
    "A <a@b.c>",
    "a@b.c, x@evil.test",
    "a@b.c;x@evil.test",
    '"a b"@c.d',
    "a@[1.2.3.4]",
    "a(c)@b.c",
    "a@b.c(x)",
    "ä@b.c",
    "a@ä.c",
    "a@b.c\u2028",
    "\u202ea@b.c",
    "a\u200b@b.c",
    "a@b.c\t",
    "g:a@b.c;",
    "a\\@b@c.d",
    "a" * 65 + "@b.c",
    "a@" + "b" * 254,
    "a@b.c\x7f",
    "a@b.c\x85",
    "-oQ/tmp@b.c\n",
    "a,b@c.d",
    "a:b@c.d",
    "a@b,c",
    "a@@b.c",
    "a@b.c <x@evil.test>",
]


def read_strictly(mail: bytes) -> list[tuple[str, str]]:
    """(name, unfolded value) of every header, by RFC 5322 §2.2 and §3.2.2 to the letter; fails on anything else."""
    head, separator, _ = mail.partition(b"\r\n\r\n")
    assert separator
    assert b"\r" not in mail.replace(b"\r\n", b"")
    assert b"\n" not in mail.replace(b"\r\n", b"")
    headers: list[tuple[str, str]] = []
    for line in head.split(b"\r\n"):
        assert re.fullmatch(rb"[\t\x20-\x7e]+", line), line
        assert len(line) <= 998
        if line[:1] in (b" ", b"\t"):
            assert line.strip(), "a folded line of blanks only"
            name, value = headers[-1]
            headers[-1] = (name, value + line.decode("ascii"))
        else:
            name_bytes, colon, rest = line.partition(b":")
            assert colon
            assert re.fullmatch(rb"[\x21-\x39\x3b-\x7e]+", name_bytes), line
            headers.append((name_bytes.decode("ascii"), rest.decode("ascii").strip()))
    return headers


def words(value: str) -> str:
    """Encoded-words (base64, UTF-8: the only form we write) as text, by RFC 2047 §2 and §6.2."""
    if "=?" not in value:
        return value
    parts = value.split()
    for part in parts:
        assert len(part) <= 75
        assert re.fullmatch(r"=\?utf-8\?b\?[A-Za-z0-9+/]+=*\?=", part)
    return "".join(base64.b64decode(part[10:-2], validate=True).decode("utf-8") for part in parts)


def addresses_of(value: str) -> list[tuple[str, str]]:
    """(display name, address) of a mailbox list: quoted strings, encoded-words, angle brackets; nothing else is read."""
    found, rest = [], value
    while rest:
        match = re.match(
            r'(?:"((?:[^"\\]|\\.)*)"|([^<>",@]*?)) ?<([^<>\s@]+@[^<>\s@]+)>|([^<>",\s@]+@[^<>",\s@]+)', rest
        )
        assert match, rest
        name = re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else words((match[2] or "").strip())
        found.append((name, match[3] or match[4]))
        rest = rest[match.end() :]
        assert rest in ("", ",") or rest.startswith(", ")
        rest = rest.removeprefix(",").strip()
    return found


def check(mail: bytes, name: str | None, subject: str | None) -> None:
    """Exactly our headers, our sender and our recipient, whoever reads; name and subject as they were meant."""
    strict = read_strictly(mail)
    assert [header for header, _ in strict] == HEADERS
    by_name = dict(strict)
    assert addresses_of(by_name["To"]) == [("", RECIPIENT)]
    ((shown, address),) = addresses_of(by_name["From"])
    assert address == SENDER
    assert name is None or shown == name
    assert subject is None or words(by_name["Subject"]) == subject
    for parsed in (email.message_from_bytes(mail), BytesParser(policy=email.policy.default).parsebytes(mail)):
        assert parsed.keys() == HEADERS
        assert [a for _, a in getaddresses(parsed.get_all("To", []))] == [RECIPIENT]
        assert [a for _, a in getaddresses([str(parsed["From"])])] == [SENDER]
        assert parsed.get_all("Bcc") is None


@pytest.mark.parametrize("subject", TEXTS, ids=repr)
def test_a_hostile_subject_is_refused_or_only_a_subject(subject: str) -> None:
    try:
        mail = build_mail(message(subject=subject, text="t", html=None, address=RECIPIENT), parse_from(SENDER), NOW)
    except MailError:
        return
    check(mail, None, subject.strip() if subject.isascii() and "=?" not in subject and len(subject) <= 70 else subject)


@pytest.mark.parametrize("name", TEXTS, ids=repr)
def test_a_hostile_display_name_is_refused_or_only_a_name(name: str) -> None:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    for text in (f'"{escaped}" <{SENDER}>', f"{name} <{SENDER}>"):
        try:
            sender = parse_from(text)
        except MailError:
            continue
        if sender.address != SENDER:  # the operator's own setting named somebody else; it is still one address
            assert len(addresses_of(sender.header)) == 1
            continue
        check(build_mail(message(subject="s", text="t", html=None, address=RECIPIENT), sender, NOW), None, "s")


@pytest.mark.parametrize("address", ADDRESSES, ids=repr)
def test_a_hostile_address_is_no_recipient(address: str) -> None:
    with pytest.raises(MailError):
        build_mail(message(subject="s", text="t", html=None, address=address), parse_from(SENDER), NOW)


def test_there_are_forty_of_each() -> None:
    assert min(len(set(TEXTS)), len(set(ADDRESSES))) >= 40


def test_the_strict_reader_refuses_what_it_is_there_for() -> None:
    good = build_mail(
        message(subject="s", text="t", html=None, address=RECIPIENT), FromAddress(SENDER, SENDER, "example.org"), NOW
    )
    check(good, "", "s")
    for bad in (
        good.replace(b"\r\nDate", b"\nDate"),
        good.replace(b"Subject: s", b"Subject: s\r\nBcc: x@evil.test"),
        good.replace(b"Subject: s", b"Subject: \xc3\xa4"),
        good.replace(b"To: a@", b"To: x@evil.test, a@"),
    ):
        with pytest.raises(AssertionError):
            check(bad, "", "s")
