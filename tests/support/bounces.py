"""Mails that come back, as mail servers write them; and an account that reads them.

Written from RFC 3464, RFC 5965 and the sources of Postfix (bounce_notify_util.c) and Exim (moan.c, deliver.c): nothing of the vendors package.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from runtime import ids
from runtime.callbacks import subject_token
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from tests.support.made import NOW, message

SECRET = "5ecret-of-bounces-0123456789"
ADDRESS = "bounces@shop.example"
NID = ids.notification_id(NOW - 100, "t")


def mail_of(address: str = "zoe@example.org", **fields: Any) -> ChannelMessage:
    """A mail to an address, with the id that it makes."""
    nid = fields.pop("notification_id", NID)
    fingerprint = ids.address_hash("email", address)
    return message(
        channel="email",
        address=address,
        notification_id=nid,
        message_id=ids.message_id(nid, "email", fingerprint),
        **fields,
    )


def word_of(message_id: str, secret: str = SECRET, name: str = "mail") -> str:
    raw = UUID(message_id).bytes
    mac = hmac.new(secret.encode(), b"word\0" + name.encode() + b"\0" + raw, hashlib.sha256).digest()[:10]
    return base64.b32encode(raw).decode().strip("=").lower() + base64.b32encode(mac).decode().lower()


def ref_of(sent: ChannelMessage, secret: str = SECRET, name: str = "mail") -> str:
    token = subject_token(sent, name) or ""
    mac = hmac.new(secret.encode(), b"header\0" + name.encode() + b"\0" + token.encode(), hashlib.sha256).digest()[:16]
    return f"{token}.{base64.urlsafe_b64encode(mac).decode().strip('=')}"


def verp(word: str) -> str:
    return f"bounces+{word}@shop.example"


def bounces_account(port: int = 993, **more: Any) -> ProviderSettings:
    bounces = {
        "address": ADDRESS,
        "host": "127.0.0.1",
        "port": port,
        "tls": "none",
        "username": "bounces",
        "password": "pw",
        "secret": SECRET,
        "poll_s": 1,
        **more.pop("bounces", {}),
    }
    made: dict[str, Any] = {"host": "127.0.0.1", "port": 25, "from_address": "no-reply@shop.example", "tls": "none"}
    own = {"name": "mail", "channel": "email", "kind": "smtp", "bounces": bounces}
    return ProviderSettings(**{**own, **made, **more})


def returned(sent: ChannelMessage | None, ref: str | None = None) -> str:
    """The headers of the mail that comes back."""
    if sent is None:
        return "From: no-reply@shop.example\r\nSubject: Hi\r\n"
    head = f"X-Heliograph-Ref: {ref}\r\n" if ref else ""
    return f"From: no-reply@shop.example\r\nTo: {sent['address']}\r\nSubject: Hi\r\nMessage-ID: <{sent['message_id']}@shop.example>\r\n{head}"


def dsn(
    to: str,
    fields: Sequence[tuple[str, str]],
    *,
    per_message: Sequence[tuple[str, str]] = (("Reporting-MTA", "dns; mx.example.org"),),
    back: str = "",
    number: int = 1,
    words: str = "This is the mail system at host mx.example.org.",
) -> bytes:
    """A report in Postfix's form: `fields` of its one recipient, `back` the headers of the mail that comes back."""
    block = "".join(f"{name}: {value}\r\n" for name, value in fields)
    message_block = "".join(f"{name}: {value}\r\n" for name, value in per_message)
    return (
        f"Return-Path: <>\r\nDelivered-To: {to}\r\nDate: Fri, 15 Jan 2027 08:00:00 +0000\r\n"
        "From: MAILER-DAEMON@mx.example.org (Mail Delivery System)\r\nSubject: Undelivered Mail Returned to Sender\r\n"
        f"To: {to}\r\nAuto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="9A1B.1/mx.example.org"\r\n'
        f"Message-Id: <2027.{number}@mx.example.org>\r\n\r\nThis is a MIME-encapsulated message.\r\n\r\n"
        f"--9A1B.1/mx.example.org\r\nContent-Description: Notification\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n{words}\r\n\r\n"
        "--9A1B.1/mx.example.org\r\nContent-Description: Delivery report\r\nContent-Type: message/delivery-status\r\n\r\n"
        f"{message_block}\r\n{block}\r\n"
        "--9A1B.1/mx.example.org\r\nContent-Description: Undelivered Message Headers\r\nContent-Type: text/rfc822-headers\r\n\r\n"
        f"{back}\r\n--9A1B.1/mx.example.org--\r\n"
    ).encode()


def failed(
    status: str, diagnostic: str | None, address: str = "zoe@example.org", action: str = "failed"
) -> list[tuple[str, str]]:
    """The block of one recipient."""
    block = [
        ("Final-Recipient", f"rfc822; {address}"),
        ("Original-Recipient", f"rfc822;{address}"),
        ("Action", action),
        ("Status", status),
    ]
    return [
        *block,
        *([("Remote-MTA", "dns; mx.example.org"), ("Diagnostic-Code", f"smtp; {diagnostic}")] if diagnostic else []),
    ]


def complaint(
    sent: ChannelMessage, ref: str, kind: str = "abuse", to: str = ADDRESS, claimed: str | None = None
) -> bytes:
    """An abuse report (RFC 5965), with the mail that it is about."""
    return (
        f"From: <fbl@isp.example>\r\nDate: Fri, 15 Jan 2027 08:00:00 +0000\r\nSubject: FW: Hi\r\nTo: <{to}>\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=feedback-report;\r\n boundary="part1"\r\n\r\n'
        "--part1\r\nContent-Type: text/plain\r\n\r\nThis is an email abuse report.\r\n\r\n"
        "--part1\r\nContent-Type: message/feedback-report\r\n\r\n"
        f"Feedback-Type: {kind}\r\nUser-Agent: SomeGenerator/1.0\r\nVersion: 1\r\n"
        f"Original-Rcpt-To: <{claimed or sent['address']}>\r\n\r\n"
        f"--part1\r\nContent-Type: message/rfc822\r\nContent-Disposition: inline\r\n\r\n{returned(sent, ref)}\r\nHello\r\n\r\n--part1--\r\n"
    ).encode()


def exim(sent: ChannelMessage, to: str, ref: str | None) -> bytes:
    """As Exim 4.96 writes it: no Diagnostic-Code for a recipient of its own, the whole mail comes back."""
    return (
        f"Envelope-to: {to}\r\nX-Failed-Recipients: {sent['address']}\r\nAuto-Submitted: auto-replied\r\nFrom: Mail Delivery System <Mailer-Daemon@mx.example.org>\r\n"
        f"To: {to}\r\nReferences: <{sent['message_id']}@shop.example>\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=1800000000-eximdsn-1\r\n"
        "MIME-Version: 1.0\r\nSubject: Mail delivery failed: returning message to sender\r\nMessage-Id: <E1xyz-0001-AB@mx.example.org>\r\n"
        "Date: Fri, 15 Jan 2027 08:00:00 +0000\r\n\r\n--1800000000-eximdsn-1\r\nContent-type: text/plain; charset=us-ascii\r\n\r\n"
        f"A message that you sent could not be delivered to one or more of its\r\nrecipients.\r\n\r\n  {sent['address']}\r\n    host mx.example.net [192.0.2.1]\r\n    SMTP error from remote mail server after RCPT TO:<{sent['address']}>:\r\n    550 5.1.1 User unknown\r\n\r\n"
        "--1800000000-eximdsn-1\r\nContent-type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example.org\r\n\r\n"
        f"Action: failed\r\nFinal-Recipient: rfc822;{sent['address']}\r\nStatus: 5.0.0\r\nRemote-MTA: dns; mx.example.net\r\nDiagnostic-Code: smtp; 550 5.1.1 User unknown\r\n\r\n"
        f"--1800000000-eximdsn-1\r\nContent-type: message/rfc822\r\n\r\n{returned(sent, ref)}\r\nHello\r\n\r\n--1800000000-eximdsn-1--\r\n"
    ).encode()


def qmail(sent: ChannelMessage, to: str) -> bytes:
    """A bounce of before RFC 3464 (qmail-send's), which flufl.bounce reads."""
    return (
        f"Date: 15 Jan 2027 08:00:00 -0000\r\nFrom: MAILER-DAEMON@mx.example.org\r\nTo: {to}\r\nSubject: failure notice\r\n\r\n"
        "Hi. This is the qmail-send program at mx.example.org.\r\nI'm afraid I wasn't able to deliver your message to the following addresses.\r\n"
        "This is a permanent error; I've given up. Sorry it didn't work out.\r\n\r\n"
        f"<{sent['address']}>:\r\n192.0.2.1 does not like recipient.\r\nRemote host said: 550 5.1.1 no such user\r\nGiving up on 192.0.2.1.\r\n\r\n--- Below this line is a copy of the message.\r\n\r\n"
        f"{returned(sent)}\r\nHello\r\n"
    ).encode()


def vacation(to: str) -> bytes:
    """An automatic reply."""
    return (
        f"From: zoe@example.org\r\nTo: {to}\r\nDate: Fri, 15 Jan 2027 08:00:00 +0000\r\nSubject: Away\r\nAuto-Submitted: auto-replied\r\n\r\nI am away.\r\n"
    ).encode()
