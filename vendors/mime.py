"""A message becomes RFC 5322 bytes, built by hand: the standard library's EmailMessage costs 80 times as much; pure.

Header injection ends here: every header value is ASCII without control characters, whatever comes in, and a test re-parses
hostile mails with two parsers. Never: a connection, a template.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import b2a_base64
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

from schemas.events import ChannelMessage

_LINE = 76  # characters of a base64 line (RFC 2045 §6.8)
_FOLD = 76  # characters of a line that holds an encoded-word (RFC 2047 §2)
_WORD_FRAME = len("=?utf-8?b??=")
_MAX_WORD = 75
_FROM = re.compile(r'(?:(?P<name>"(?:[^"\\]|\\.)*"|[^"<>]*?)\s*<(?P<inner>[^<>]*)>|(?P<bare>[^<>"]*))')
_ENCODED_WORD = re.compile(r"=\?.*\?=")
"""Some servers decode one inside an address, to another address."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_PLAIN = re.compile(r'[\x00-\x20\x7f<>,;:"()\[\]\\@]')
"""What means something in a header or a command, or nothing that is printed."""
_MESSAGE_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_SPECIAL = re.compile(r'[<>,;:@"\\]')
"""What an unquoted display name must not hold (RFC 5322 §3.2.3), or it would read as another address."""


class MailError(ValueError):
    """The message cannot be an e-mail: an address or header holds what it must not."""


@dataclass(frozen=True, slots=True)
class FromAddress:
    """The sending mailbox: `header` for From, `address` for the envelope, `domain` for Message-ID, `name` as it is shown."""

    header: str
    address: str
    domain: str
    name: str = ""


def parse_from(text: str) -> FromAddress:
    """`Name <a@b>`, `"Name, Inc." <a@b>` or `a@b`. Raises MailError, which says what to write instead."""
    found = _FROM.fullmatch(text.strip())
    if not found or "=?" in text or _has_control(text):
        raise MailError("from_address must be an e-mail address, with or without a display name")
    name = found["name"] or ""
    address = found["bare"] if found["inner"] is None else found["inner"]
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    elif special := _SPECIAL.search(name):
        raise MailError(
            f'from_address has a {special[0]} in its display name: put the name in quotes, "Name" <address>'
        )
    if not address.isascii():
        raise MailError("from_address must be ASCII behind its display name: write the domain in its xn-- form")
    if not is_plain_address(address):
        raise MailError("from_address must be an e-mail address, with or without a display name")
    return FromAddress(_mailbox(name, address), address, address.rpartition("@")[2], name)


def _mailbox(name: str, address: str) -> str:
    """The header's value; the address on a line of its own where both do not fit on one."""
    if not name:
        return address
    shown = encode_words(name, "From", quote=True)
    used = len(shown.rpartition("\r\n")[2]) + (0 if "\r\n" in shown else len("From: "))
    return f"{shown} <{address}>" if used + len(address) + 3 <= _FOLD else f"{shown}\r\n <{address}>"


def is_plain_address(address: str) -> bool:
    """Printable ASCII with one @, none of the characters that mean something in a header or command, no encoded-word."""
    local, _, domain = address.partition("@")
    return (
        0 < len(local) <= 64
        and 0 < len(domain) <= 253
        and address.isascii()
        and not _ENCODED_WORD.search(address)
        and not _NOT_PLAIN.search(local)
        and not _NOT_PLAIN.search(domain)
    )


def _has_control(text: str) -> bool:
    return _CONTROL.search(text) is not None


@lru_cache(maxsize=16)
def _date(second: int) -> str:
    """Of the Date header: the mails of a second share it."""
    return format_datetime(datetime.fromtimestamp(second, UTC))


def encode_words(text: str, header: str, *, quote: bool = False) -> str:
    """The value of a header of that name: as it is when short plain ASCII, else RFC 2047 encoded-words, folded so that no
    line is longer than 76 characters."""
    room = _FOLD - len(header) - len(": ")
    if text.isascii() and len(text) + 2 <= room and "=?" not in text:
        if not quote or all(char.isalnum() or char in " -_'" for char in text):
            return text
        quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        if len(quoted) <= room:
            return quoted
    words: list[bytes] = []
    chunk = b""
    for char in text:
        encoded = char.encode()
        # The first word shares its line with the header's name, each other one with a blank.
        longest = (min(_MAX_WORD, room if not words else _FOLD - 1) - _WORD_FRAME) // 4 * 3
        if len(chunk) + len(encoded) > longest:
            words.append(chunk)
            chunk = b""
        chunk += encoded
    words.append(chunk)
    return "\r\n ".join(f"=?utf-8?b?{b64encode(word).decode()}?=" for word in words)


def _part(subtype: bytes, text: str) -> tuple[bytes, bytes, bytes]:
    """Headers and body of a part, in pieces: a mail is joined once."""
    if "\n" in text:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    encoded = b2a_base64(text.encode("utf-8", "replace"), newline=False)
    lines = [encoded[i : i + _LINE] for i in range(0, len(encoded), _LINE)]
    head = b"Content-Type: text/%s; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n" % subtype
    return head, b"\r\n".join(lines), b"\r\n"


def check_mail(message: ChannelMessage) -> None:
    """Raises MailError for a message that no e-mail can be made of, whatever carries it."""
    if not is_plain_address(message["address"]):
        raise MailError("the recipient's address is not one plain address")
    if _has_control(message["subject"] or ""):
        raise MailError("the subject holds a control character")


def build_mail(
    message: ChannelMessage, sender: FromAddress, now_ms: int, header: tuple[str, str] | None = None
) -> bytes:
    """The mail, CRLF lines. The same message has the same Message-ID, whatever the attempt. Raises MailError.

    `header`: a name and value of our own making, in ASCII without control characters.
    """
    check_mail(message)
    subject = message["subject"] or ""
    message_id = message["message_id"]
    if not _MESSAGE_ID.fullmatch(message_id):
        raise MailError("the message id is not a Heliograph id")
    own = f"{header[0]}: {header[1]}\r\n" if header else ""
    head = (
        f"From: {sender.header}\r\nTo: {message['address']}\r\nSubject: {encode_words(subject, 'Subject')}\r\n"
        f"Date: {_date(now_ms // 1000)}\r\n"
        f"Message-ID: <{message_id}@{sender.domain}>\r\nAuto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n{own}"
    ).encode("ascii")
    text = message["text"]
    html = message["html"]
    if html is None:
        return b"".join((head, *_part(b"plain", text or "")))
    if text is None:
        return b"".join((head, *_part(b"html", html)))
    boundary = f"=_{message_id}".encode()  # base64 lines never begin with "--"
    opened = b'Content-Type: multipart/alternative; boundary="%s"\r\n\r\n--%s\r\n' % (boundary, boundary)
    next_one, closed = b"--%s\r\n" % boundary, b"--%s--\r\n" % boundary
    return b"".join((head, opened, *_part(b"plain", text), next_one, *_part(b"html", html), closed))
