"""What the simulated vendors report of a message they took, signed as each signs.

    Twilio      POST StatusCallback   a form; X-Twilio-Signature: base64(HMAC-SHA1(auth token, URL + sorted fields))
    SendGrid    POST its target       an array of events; base64(ECDSA P-256 SHA-256 over time + body), a key of its own

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
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric import ec
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
