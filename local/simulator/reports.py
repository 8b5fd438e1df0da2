"""What the simulated vendors report of a message they took, signed as each signs.

    Twilio      POST StatusCallback   a form; X-Twilio-Signature: base64(HMAC-SHA1(auth token, URL + sorted fields))
    SendGrid    POST its target       an array of events; base64(ECDSA P-256 SHA-256 over time + body), a key of its own
    Mailgun     POST its target       one event; hex(HMAC-SHA256(the target's secret, time + token))
    Vonage      POST its target       JSON; with a secret sig = hex(HMAC-SHA256(secret, sorted &name=value)), else nothing
    BulkSMS, OneSignal   POST their target   an array of messages; an event. Nothing is signed: the URL has a secret
    SES         POST its target       a message of the topic that is the target's secret, signature version 2; the certificate
                                      is at /SimpleNotificationService-simulator.pem, where the account's base_url leads

`sent` and its like go out 0.1 s after the accept and the end after 2 s, independently. How a message ends is in its address: of a
number +1500555 and the last four digits of Twilio's error code (+15005553003 is `undelivered` with 30003), of a mail the word
before a + (bounce+1@example.org): see END_OF_MAIL.
May import cryptography. Never: a vendor's SDK, the log of accepts.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from local.simulator.callbacks import END_AFTER_S, SENT_AFTER_S, Post, Target

_UNREACHABLE = re.compile(r"\+1500555(3\d{3})", re.ASCII)
END_OF_MAIL = ("bounce", "blocked", "dropped", "complaint", "unsubscribe", "open", "click")
"""Words before the + of a mail's address that say how it ends; any other is delivered."""


def end_word(to: str) -> str:
    """How a mail to this address ends."""
    word = to.partition("@")[0].partition("+")[0]
    return word if word in END_OF_MAIL else "delivered"


# -- Twilio -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message whose sender wants to hear of it."""

    account_sid: str
    auth_token: str
    sid: str
    to: str
    sender: str
    url: str


def end_of(to: str) -> dict[str, str]:
    """How a message to this number ends."""
    unreachable = _UNREACHABLE.fullmatch(to)
    if unreachable is None:
        return {"MessageStatus": "delivered"}
    return {"MessageStatus": "undelivered", "ErrorCode": f"3{unreachable[1][1:].zfill(4)}"}


def signature(auth_token: str, url: str, fields: Mapping[str, str]) -> str:
    """X-Twilio-Signature."""
    signed = url + "".join(name + fields[name] for name in sorted(fields))
    return base64.b64encode(hmac.digest(auth_token.encode(), signed.encode(), "sha1")).decode()


def twilio_posts(accepted: Accepted) -> Iterator[Post]:
    """`sent`, then the end."""
    url, _, _ = accepted.url.partition("#")  # the fragment is for Twilio, and never sent
    for after_s, report in ((SENT_AFTER_S, {"MessageStatus": "sent"}), (END_AFTER_S, end_of(accepted.to))):
        status = report["MessageStatus"]
        fields = {
            "AccountSid": accepted.account_sid,
            "ApiVersion": "2010-04-01",
            "From": accepted.sender,
            "To": accepted.to,
            "MessageSid": accepted.sid,
            "SmsSid": accepted.sid,
            "SmsStatus": status,
            **report,
        }
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "X-Twilio-Signature": signature(accepted.auth_token, url, fields),
        }
        yield Post(status, after_s, url, urlencode(fields).encode(), headers)


# -- SendGrid ---------------------------------------------------------------------------------------------------------

_BOUNCE = {"event": "bounce", "type": "bounce", "status": "5.1.1", "bounce_classification": "Invalid Address"}
_SENDGRID_ENDS: Mapping[str, list[dict[str, Any]]] = {
    "bounce": [{**_BOUNCE, "reason": "550 5.1.1 no such user"}],
    "blocked": [{"event": "bounce", "type": "blocked", "status": "5.7.1", "bounce_classification": "Content"}],
    "dropped": [{"event": "dropped", "reason": "Unsubscribed Address"}],
    "complaint": [{"event": "delivered"}, {"event": "spamreport"}],
    "unsubscribe": [{"event": "delivered"}, {"event": "unsubscribe"}],
    "open": [{"event": "delivered"}, {"event": "open", "useragent": "Mozilla/5.0", "ip": "192.0.2.1"}],
    "click": [{"event": "delivered"}, {"event": "open"}, {"event": "click", "url": "https://shop.example/"}],
    "delivered": [{"event": "delivered", "response": "250 OK"}],
}


class EventsKey:
    """SendGrid's key of an account, which signs its events."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def load_or_create(cls, path: Path) -> EventsKey:
        """The key of a file, which is made where there is none. Raises OSError."""
        if path.exists():
            key = load_pem_private_key(path.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey), "this class wrote it"
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(key)

    @property
    def public(self) -> str:
        """As SendGrid shows it: base64 of SubjectPublicKeyInfo."""
        spki = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(spki).decode()

    def headers(self, body: bytes, at: float) -> dict[str, str]:
        """Of a request that is signed at this time (s since 1970)."""
        timestamp = str(int(at))
        signed = self._key.sign(timestamp.encode() + body, ec.ECDSA(SHA256()))
        return {
            "Content-Type": "application/json",
            "X-Twilio-Email-Event-Webhook-Timestamp": timestamp,
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signed).decode(),
        }


def sendgrid_posts(
    target: Target, key: EventsKey, to: str, their_id: str, custom_args: Mapping[str, str]
) -> Iterator[Post]:
    """`processed`, then the end. Lines end in \\r\\n, as SendGrid's do."""
    now = time.time()
    for after_s, events in ((SENT_AFTER_S, [{"event": "processed"}]), (END_AFTER_S, _SENDGRID_ENDS[end_word(to)])):
        made = [
            {
                "email": to,
                "timestamp": int(now + after_s),
                "smtp-id": f"<{their_id}@geopod-ismtpd-1>",
                "sg_event_id": secrets.token_urlsafe(16),
                "sg_message_id": f"{their_id}.recvd-6c9d-0.0",
                **custom_args,
                **event,
            }
            for event in events
        ]
        body = b"[" + b",\r\n".join(json.dumps(event).encode() for event in made) + b"]\r\n"
        yield Post(made[-1]["event"], after_s, target.url, body, key.headers(body, now))


# -- Mailgun ----------------------------------------------------------------------------------------------------------

_JSON = {"Content-Type": "application/json"}
_MAILGUN_FAILED = {"event": "failed", "severity": "permanent"}
_MAILGUN_ENDS: Mapping[str, list[dict[str, Any]]] = {
    "bounce": [
        {**_MAILGUN_FAILED, "reason": "bounce", "delivery-status": {"code": 550, "message": "5.1.1 no such user"}}
    ],
    "blocked": [{**_MAILGUN_FAILED, "reason": "bounce", "delivery-status": {"code": 554, "message": "5.7.1 policy"}}],
    "dropped": [{**_MAILGUN_FAILED, "reason": "suppress-unsubscribe"}],
    "complaint": [{"event": "delivered"}, {"event": "complained"}],
    "unsubscribe": [{"event": "delivered"}, {"event": "unsubscribed"}],
    "open": [{"event": "delivered"}, {"event": "opened", "ip": "192.0.2.1"}],
    "click": [{"event": "delivered"}, {"event": "opened"}, {"event": "clicked", "url": "https://shop.example/"}],
    "delivered": [{"event": "delivered", "delivery-status": {"code": 250, "message": "OK"}}],
}


def mailgun_posts(target: Target, to: str, their_id: str, variables: Mapping[str, str]) -> Iterator[Post]:
    """`accepted`, then the end, one event a request; repeated until it is answered 200 or 406."""
    now = time.time()
    ends = [(END_AFTER_S, event) for event in _MAILGUN_ENDS[end_word(to)]]
    for after_s, event in [(SENT_AFTER_S, {"event": "accepted"}), *ends]:
        timestamp, token = str(int(now)), secrets.token_hex(25)
        signed = hmac.digest(target.secret.encode(), (timestamp + token).encode(), "sha256").hex()
        made = {
            "id": secrets.token_urlsafe(16),
            "timestamp": now + after_s,
            "recipient": to,
            "message": {"headers": {"message-id": their_id.strip("<>"), "to": to}},
            "user-variables": dict(variables),
            **event,
        }
        body = {"signature": {"timestamp": timestamp, "token": token, "signature": signed}, "event-data": made}
        yield Post(event["event"], after_s, target.url, json.dumps(body).encode(), _JSON, frozenset({200, 406}))


# -- Vonage -----------------------------------------------------------------------------------------------------------


def vonage_signature(secret: str, fields: Mapping[str, str]) -> str:
    """`sig` by HMAC-SHA256."""
    signed = "".join(f"&{name}={fields[name].replace('&', '_').replace('=', '_')}" for name in sorted(fields))
    return hmac.digest(secret.encode(), signed.encode(), "sha256").hex()


def vonage_posts(target: Target, key: str, to: str, sender: str, their_id: str, reference: str) -> Iterator[Post]:
    """`accepted`, then the end: of +15005553xxx `failed` with err-code 3, of others `delivered`."""
    now = time.time()
    reached = _UNREACHABLE.fullmatch(to) is None
    for after_s, status in ((SENT_AFTER_S, "accepted"), (END_AFTER_S, "delivered" if reached else "failed")):
        fields = {
            "msisdn": to.removeprefix("+"),
            "to": sender,
            "messageId": their_id,
            "status": status,
            "err-code": "3" if status == "failed" else "0",
            "api-key": key,
            "client-ref": reference,
            "message-timestamp": datetime.fromtimestamp(now + after_s, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "timestamp": str(int(now)),
            "nonce": secrets.token_hex(8),
        }
        signed = {"sig": vonage_signature(target.secret, fields)} if target.secret else {}
        yield Post(status, after_s, target.url, json.dumps(fields | signed).encode(), _JSON)


# -- BulkSMS ----------------------------------------------------------------------------------------------------------


def bulksms_posts(target: Target, to: str, their_id: str, reference: str) -> Iterator[Post]:
    """`SENT`, then the end, an array each: of +15005553xxx FAILED, of others DELIVERED. The target's URL has the secret."""
    submitted = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    failed = {"id": "FAILED.EXPIRED", "type": "FAILED", "subtype": "EXPIRED"}
    end = {"id": "DELIVERED.null", "type": "DELIVERED", "subtype": None}
    sent = {"id": "SENT.null", "type": "SENT", "subtype": None}
    for after_s, status in ((SENT_AFTER_S, sent), (END_AFTER_S, failed if _UNREACHABLE.fullmatch(to) else end)):
        message = {
            "id": their_id,
            "type": "SENT",
            "to": to.removeprefix("+"),
            "submission": {"id": their_id, "date": submitted},
            "status": status,
            "userSuppliedId": reference,
        }
        yield Post(str(status["type"]), after_s, target.url, json.dumps([message]).encode(), _JSON)


# -- OneSignal --------------------------------------------------------------------------------------------------------


def onesignal_posts(target: Target, to: str, their_id: str) -> Iterator[Post]:
    """`sent`, then `received`. The target's URL has the secret."""
    now = time.time()
    for after_s, kind in ((SENT_AFTER_S, "sent"), (END_AFTER_S, "received")):
        event = {
            "kind": f"message.push.{kind}",
            "event_id": str(uuid4()),
            "message_id": their_id,
            "subscription_id": to,
            "timestamp": str(int(now + after_s)),
        }
        yield Post(kind, after_s, target.url, json.dumps(event).encode(), _JSON)


# -- SES by SNS -------------------------------------------------------------------------------------------------------

CERTIFICATE_PATH = "/SimpleNotificationService-simulator.pem"
_SES_ENDS: Mapping[str, list[tuple[str, str, dict[str, Any]]]] = {
    "bounce": [("Bounce", "bounce", {"bounceType": "Permanent", "bounceSubType": "General", "feedbackId": "f1"})],
    "blocked": [("Bounce", "bounce", {"bounceType": "Transient", "bounceSubType": "General", "feedbackId": "f1"})],
    "dropped": [("Reject", "reject", {"reason": "Bad content"})],
    "complaint": [("Delivery", "delivery", {}), ("Complaint", "complaint", {"complaintFeedbackType": "abuse"})],
    "unsubscribe": [("Delivery", "delivery", {}), ("Subscription", "subscription", {"contactList": "all"})],
    "open": [("Delivery", "delivery", {}), ("Open", "open", {"ipAddress": "192.0.2.1"})],
    "click": [
        ("Delivery", "delivery", {}),
        ("Open", "open", {}),
        ("Click", "click", {"link": "https://shop.example/"}),
    ],
    "delivered": [("Delivery", "delivery", {"smtpResponse": "250 OK"})],
}


class SnsKey:
    """SNS's key and its certificate, made when first asked for."""

    @cached_property
    def _key(self) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, 2048)

    @cached_property
    def certificate(self) -> bytes:
        """As PEM."""
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sns.amazonaws.com")])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(name, name, self._key.public_key(), 1, now, now + timedelta(days=365))
        return made.sign(self._key, SHA256()).public_bytes(Encoding.PEM)

    def headers_and_body(self, fields: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
        """Of a notification."""
        names = ("Message", "MessageId", "Timestamp", "TopicArn", "Type")
        signed = "".join(f"{name}\n{fields[name]}\n" for name in names).encode()
        signature = base64.b64encode(self._key.sign(signed, padding.PKCS1v15(), SHA256())).decode()
        headers = {
            "Content-Type": "text/plain; charset=UTF-8",
            "x-amz-sns-message-type": fields["Type"],
            "x-amz-sns-message-id": fields["MessageId"],
            "x-amz-sns-topic-arn": fields["TopicArn"],
        }
        return headers, json.dumps({**fields, "Signature": signature}).encode()


def ses_posts(target: Target, key: SnsKey, to: str, their_id: str, tags: Mapping[str, str]) -> Iterator[Post]:
    """`Send`, then the end."""
    ends = [(END_AFTER_S, *event) for event in _SES_ENDS[end_word(to)]]
    region = target.secret.split(":")[3] if target.secret.count(":") == 5 else ""
    for after_s, event, name, own in [(SENT_AFTER_S, "Send", "send", {}), *ends]:
        now = datetime.now(UTC)
        at = (now + timedelta(seconds=after_s)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        mail = {
            "timestamp": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "messageId": their_id,
            "destination": [to],
            "tags": {tag: [value] for tag, value in tags.items()},
        }
        fields = {
            "Type": "Notification",
            "MessageId": str(uuid4()),
            "TopicArn": target.secret,
            "Message": json.dumps({"eventType": event, "mail": mail, name: {"timestamp": at, **own}}),
            "Timestamp": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "SignatureVersion": "2",
            "SigningCertURL": f"https://sns.{region}.amazonaws.com{CERTIFICATE_PATH}",
        }
        headers, body = key.headers_and_body(fields)
        yield Post(event, after_s, target.url, body, headers)
