"""A mail that came back becomes reports: delivery status notifications (RFC 3464), abuse reports (RFC 5965), and what neither is.

    | the mail                                                 | state, reason                       | status made of it |
    |----------------------------------------------------------|-------------------------------------|-------------------|
    | DSN, Action failed; the code is about the mailbox        | bounced / hard_bounce               | yes               |
    | DSN, failed; the mailbox refuses it now (full: x.2.x)    | bounced / soft_bounce               | yes               |
    | DSN, failed; any other                                   | undelivered / carrier               | yes               |
    | DSN, delivered                                           | delivered                           | yes               |
    | DSN, delayed, relayed, expanded, a word not known        | sending                             | no                |
    | abuse report: abuse, fraud, virus, other                 | complained; suppresses the address  | yes               |
    | abuse report: not-spam                                   | sending                             | no                |
    | none of these, and flufl.bounce finds a failed address   | as a DSN, by the first code in it   | yes               |
    | an automatic reply (RFC 3834)                            | sending                             | no                |
    | anything else                                            | unreadable                          |                   |

Whom it is about is read from what our own words prove alone (bounces.py), and never from an address in the report: that one counts
only where the message's id was made of it.
All that comes in is a stranger's: MAX_BYTES of a mail are read, MAX_PARTS of its parts, and what nests deeper is unreadable.
May import the shared modules of vendors and flufl.bounce. Never: IMAP, Kafka.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.errors import MessageError
from email.message import Message
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import NamedTuple

from flufl.bounce import all_failures

from runtime import ids
from runtime.callbacks import NO_SUBJECT, Subject
from vendors.bounces import HEADER, BounceAccount
from vendors.reports import LOST, MAX_ID, NEW_WORD, NOTED, DeliveryReport, Meaning, event_time, known_by, word
from vendors.sender import ErrorClass
from vendors.smtp_codes import enhanced_code, shown, smtp_rule

MAX_BYTES = 256 * 1024
"""Of a mail that are read; a report comes before the mail that it returns."""
MAX_PARTS = 64
_MAX_NESTED = 24
"""Boundaries and messages within messages: a report has about three."""
_MAX_RECIPIENTS = 10
"""Blocks of a DSN: a mail of ours has one recipient, who may stand for some."""
_TO = ("To", "Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "X-Forwarded-To", "Cc")
_HARD, _SOFT = Meaning("bounced", "hard_bounce"), Meaning("bounced", "soft_bounce")
_DIAGNOSTIC = re.compile(r"\s*(?:smtp|x-[\w-]+)?\s*;?\s*([245][0-9]{2})?[ \t-]*(.{0,500})", re.IGNORECASE | re.DOTALL)
_STATUS = re.compile(r"\s*([245]\.[0-9]{1,3}\.[0-9]{1,3})")
_REPLY = re.compile(r"(?<![\w.])([45][0-9]{2})[ -]+(?:#?(?=[45]\.[0-9]))?(.{0,200})")
_COMPLAINTS = frozenset({"abuse", "fraud", "virus", "other"})


Find = Callable[[str], Subject | None]
"""What is known of a message id that one of our words proved (runtime/references.py)."""


class Reading(NamedTuple):
    """What a mail came to. `outcome`: read, unreadable, forged (a word with a wrong HMAC), unmatched (no word of ours), or waits: it is not
    known yet what its word is about."""

    outcome: str
    reports: list[DeliveryReport]


UNREADABLE = Reading("unreadable", [])


class _Said(NamedTuple):
    """What one block of a report says."""

    meaning: Meaning
    addresses: tuple[str, ...] = ()
    code: str | None = None


def read_bounce(raw: bytes, account: BounceAccount, received_at: int, find: Find) -> Reading:
    """What a mail says; total. `raw`: at most its first MAX_BYTES. `received_at` in ms."""
    raw = raw[:MAX_BYTES]
    lowered = raw.lower()
    if lowered.count(b"boundary") + lowered.count(b"message/") > _MAX_NESTED:
        return UNREADABLE
    try:
        return _read(raw, account, received_at, find)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, MessageError, RecursionError):
        # email and flufl.bounce raise these for what is no mail: a charset that is none, a header of odd bytes.
        return UNREADABLE


def _read(raw: bytes, account: BounceAccount, received_at: int, find: Find) -> Reading:
    mail = message_from_bytes(raw)
    parts = list(islice(mail.walk(), MAX_PARTS))
    status, abuse = _part(parts, "message/delivery-status"), _part(parts, "message/feedback-report")
    subject, forged = _subject(mail, parts, status, account)
    if subject is None:
        return Reading("forged" if forged else "unmatched", [])
    said = list(islice(_said(mail, parts, status, abuse), _MAX_RECIPIENTS))
    if not said:
        return UNREADABLE
    at, message_id = _time(mail, received_at), subject.message_id or ""
    if subject.attempt_ref is None:
        subject = find(message_id) or subject
        if subject.attempt_ref is None and received_at < known_by(at):
            return Reading("waits", [])
    identity = word(_text(mail, "Message-ID"), MAX_ID) or hashlib.sha256(raw).hexdigest()
    reports = [
        DeliveryReport(
            account.name,
            message_id,
            f"{said_.meaning.state}:{n}:{hashlib.sha256(identity.encode()).hexdigest()[:32]}",
            "email",
            said_.meaning.state,
            said_.meaning.reason,
            said_.code,
            said_.code or said_.meaning.detail,
            said_.meaning.final,
            _addressee(subject, said_.addresses),
            said_.meaning.opted_out,
            subject,
            at,
            raw if n == 0 else b"",  # the mail is kept once
        )
        for n, said_ in enumerate(said)
    ]
    return Reading("read", reports)


def _part(parts: list[Message], kind: str) -> list[Message]:
    """The blocks of fields of the first part of that type."""
    for part in parts:
        if part.get_content_type() == kind and isinstance(blocks := part.get_payload(), list):
            return [block for block in blocks if isinstance(block, Message)]
    return []


def _text(message: Message, name: str) -> str:
    return " ".join(str(message.get(name, "")).split())


def _subject(
    mail: Message, parts: list[Message], status: list[Message], account: BounceAccount
) -> tuple[Subject | None, bool]:
    """What is proved of whom the mail is about; and whether something looked like a proof and was none."""
    forged = False
    proved: Subject | None = None
    for part in parts[1:]:
        # Headers that come back are those of a part within message/rfc822, or the text of text/rfc822-headers.
        for value in part.get_all(HEADER, [])[:10]:
            subject = account.subject_of(str(value))
            forged |= subject is None
            proved = proved or subject
        if part.get_content_type() == "text/rfc822-headers" and isinstance(
            text := part.get_payload(decode=True), bytes
        ):
            for value in message_from_bytes(text).get_all(HEADER, [])[:10]:
                subject = account.subject_of(str(value))
                forged |= subject is None
                proved = proved or subject
    if proved is not None:
        return proved, forged
    words = [found for name in _TO for value in mail.get_all(name, [])[:10] for found in account.words_in(str(value))]
    words += [_text(block, "Original-Envelope-Id").lower() for block in status[:1] if block.get("Original-Envelope-Id")]
    for each in words[:20]:
        if (message_id := account.message_of(each)) is not None:
            return NO_SUBJECT._replace(message_id=message_id, provider=account.name), forged
        forged = True
    return None, forged


def _addressee(subject: Subject, addresses: tuple[str, ...]) -> str | None:
    """The first address that the message went to: any other is only what the report says."""
    if (of := subject.attempt_ref) is None:
        return None
    for address in addresses:
        fingerprint = ids.address_hash("email", address)
        if subject.recipient == ids.recipient(None, "email", address) or ids.is_message_of(
            of.message_id, of.notification_id, "email", fingerprint
        ):
            return address
    return None


def _said(mail: Message, parts: list[Message], status: list[Message], abuse: list[Message]) -> Iterator[_Said]:
    if status:
        returned = _returned_to(parts)
        for block in status:
            if block.get("Action"):
                yield _of_block(block, returned)
    elif abuse:
        kind = _text(abuse[0], "Feedback-Type").lower()
        given = tuple(_address(str(value)) for value in abuse[0].get_all("Original-Rcpt-To", [])[:3])
        meaning = Meaning("complained") if kind in _COMPLAINTS else NOTED if kind == "not-spam" else NEW_WORD
        yield _Said(meaning, (*given, *_returned_to(parts)), word(kind))
    else:
        failed = [address.decode("latin-1") for address in sorted(all_failures(mail)[1])[:3]]
        if failed:
            code, text = _first_reply(parts)
            yield _Said(_failed(code, text), tuple(failed), shown(code, text) if code else None)
        elif _text(mail, "Auto-Submitted").lower().startswith("auto-replied"):
            yield _Said(NOTED, (), "auto-replied")


def _of_block(block: Message, returned: tuple[str, ...]) -> _Said:
    action = _text(block, "Action").lower()
    addresses = tuple(
        _address(str(block.get(name, ""))) for name in ("Original-Recipient", "Final-Recipient") if block.get(name)
    )
    status = _STATUS.match(_text(block, "Status"))
    found = _DIAGNOSTIC.match(_text(block, "Diagnostic-Code"))
    code, text = (int(found[1]) if found and found[1] else 0), found[2] if found else ""
    if status and not status[1].endswith(".0.0"):
        text = f"{status[1]} {text}"
    if not code and status:
        code = {"5": 500, "4": 400, "2": 250}[status[1][0]]
    known = shown(code, text) if code else None
    if action == "failed":
        return _Said(_failed(code, text), (*addresses, *returned), known)
    if action == "delivered":
        return _Said(Meaning("delivered"), addresses, known)
    return _Said(NOTED if action in ("delayed", "relayed", "expanded") else NEW_WORD, addresses, known)


def _failed(code: int, text: str) -> Meaning:
    # Nobody says at which command the server refused: what only the place of a code would tell is not told.
    rule = smtp_rule(code, text, "BODY") if code else None
    if rule is not None and rule.error is ErrorClass.PERMANENT_RECIPIENT:
        return _HARD
    enhanced = enhanced_code(code, text) or ""
    return _SOFT if enhanced[1:4] == ".2." else LOST


def _first_reply(parts: list[Message]) -> tuple[int, str]:
    """The first reply code in a bounce's words; (0, "") without one."""
    for part in parts:
        text = part.get_payload(decode=True) if part.get_content_maintype() == "text" else None
        if isinstance(text, bytes) and (found := _REPLY.search(text[:16_384].decode("latin-1"))) is not None:
            return int(found[1]), found[2]
    return 0, ""


def _returned_to(parts: list[Message]) -> tuple[str, ...]:
    """Whom the mail that comes back was for, by its own header."""
    return tuple(_address(str(part["To"])) for part in parts[1:] if part.get("To") and part.get(HEADER))[:3]


def _address(text: str) -> str:
    """`rfc822; <a@b>` as an address."""
    return text.rpartition(";")[2].strip().strip("<>").strip()[:320]


def _time(mail: Message, received_at: int) -> int | None:
    try:
        seconds = parsedate_to_datetime(_text(mail, "Date")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return event_time(seconds, received_at)
