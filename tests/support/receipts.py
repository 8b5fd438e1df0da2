"""Requests of the vendors that report, made and signed here; and a callbacks desk to send them to.

    desk.post(sendgrid([{"event": "delivered"}]))

Written from the vendors' documents a second time: nothing of the vendors package or the simulator is used.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from producers.callbacks.accounts import ReportAccounts
from producers.callbacks.app import CallbackEndpoint, create_app
from runtime import ids
from runtime.callbacks import subject_token
from runtime.errors import PublishError
from runtime.records import ProducerRecord
from runtime.settings import ProviderSettings
from schemas.codec import codec
from schemas.events import ChannelMessage
from schemas.topics import RECEIPTS, STATUS
from tests.support.made import NOW, message
from vendors.registry import create_report_readers

PUBLIC = "https://notify.shop.example"
NOW_S = NOW // 1000
NID = ids.notification_id(NOW - 100, "t")


def about(channel: str, address: str, **fields: Any) -> ChannelMessage:
    """A message that a report is about."""
    return message(channel=channel, address=address, notification_id=NID, **fields)


MAIL = about("email", "zoe@example.org")
TEXT = about("sms", "+4915112345678")


@dataclass(frozen=True)
class Callback:
    """A vendor's request."""

    kind: str
    body: bytes
    headers: Mapping[str, str]
    path: str = ""
    """Behind the kind."""

    def changed(self, **fields: Any) -> Callback:
        return replace(self, **fields)


class Broker:
    """Keeps what it is given; refuses while it is away."""

    def __init__(self) -> None:
        self.records: list[ProducerRecord] = []
        self.away = False

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        if self.away:
            raise PublishError("away")
        self.records += records

    def values(self, topic: str) -> list[dict[str, Any]]:
        name: Any = {RECEIPTS: "ProviderReceipt", STATUS: "DeliveryStatus"}[topic]
        return [codec(name).decode(record.value) for record in self.records if record.topic == topic]

    @property
    def receipts(self) -> list[dict[str, Any]]:
        return self.values(RECEIPTS)

    @property
    def statuses(self) -> list[dict[str, Any]]:
        return self.values(STATUS)


@dataclass
class Desk:
    """The application with a broker of ours."""

    providers: Sequence[ProviderSettings]
    broker: Broker = field(default_factory=Broker)
    now: int = NOW
    remembered: int = 1_000
    references: dict[str, Any] = field(default_factory=dict)
    """What the view of notify.references.v1 has, by key."""

    def __post_init__(self) -> None:
        endpoint = CallbackEndpoint(
            self.broker,
            PUBLIC,
            lambda: self.now,
            remembered=self.remembered,
            references=self.references,
            tenants=ReportAccounts(self.providers).tenants,
        )
        self.app = create_app(create_report_readers(self.providers), endpoint)

    async def post(self, callback: Callback) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.7:8088") as client:
            path = f"/callbacks/{callback.kind}{callback.path}"
            headers = [(name.encode(), value.encode("latin-1")) for name, value in callback.headers.items()]
            return await client.post(path, content=callback.body, headers=headers)


# -- SendGrid ---------------------------------------------------------------------------------------------------------

SENDGRID_KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


def spki(key: ec.EllipticCurvePrivateKey) -> str:
    """The public key as SendGrid shows it."""
    return b64encode(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def sendgrid_account(name: str = "sg", key: ec.EllipticCurvePrivateKey = SENDGRID_KEY, **more: Any) -> ProviderSettings:
    made: dict[str, Any] = {"api_key": "k", "from_address": "a@shop.example", "events_key": spki(key), **more}
    return ProviderSettings(name=name, channel="email", kind="sendgrid", **made)


def sendgrid_event(event: str, sent: Any = MAIL, provider: str = "sg", **more: Any) -> dict[str, Any]:
    """One event of the array."""
    token = {"heliograph": subject_token(sent, provider)} if sent else {}
    return {
        "email": sent["address"] if sent else "zoe@example.org",
        "timestamp": NOW_S - 5,
        "event": event,
        "sg_event_id": f"{event}-1",
        "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
        **token,
        **more,
    }


def sendgrid_signed(
    body: bytes,
    key: ec.EllipticCurvePrivateKey = SENDGRID_KEY,
    at: str = str(NOW_S),
    algorithm: Callable[[], Any] = SHA256,
) -> dict[str, str]:
    """Headers."""
    return {
        "Content-Type": "application/json",
        "X-Twilio-Email-Event-Webhook-Timestamp": at,
        "X-Twilio-Email-Event-Webhook-Signature": b64encode(
            key.sign(at.encode() + body, ec.ECDSA(algorithm()))
        ).decode(),
    }


def sendgrid(events: Any, **signing: Any) -> Callback:
    """The request; events as bytes go out as they are."""
    body = events if isinstance(events, bytes) else json.dumps(events).encode()
    return Callback("sendgrid", body, sendgrid_signed(body, **signing))


# -- Mailgun ----------------------------------------------------------------------------------------------------------

SIGNING_KEY = "mailgun-signing-key"


def mailgun_account(name: str = "mg", **more: Any) -> ProviderSettings:
    made: dict[str, Any] = {
        "api_key": "k",
        "domain": "mg.shop.example",
        "from_address": "a@mg.shop.example",
        "signing_key": SIGNING_KEY,
        **more,
    }
    return ProviderSettings(name=name, channel="email", kind="mailgun", **made)


def mailgun_event(event: str, sent: Any = MAIL, **more: Any) -> dict[str, Any]:
    """What is in `event-data`."""
    variables = {"heliograph": subject_token(sent, "mg"), "message_id": sent["message_id"]} if sent else {}
    return {
        "id": "ncV2XwymRUKbPek_MIM-Gw",
        "timestamp": NOW_S - 5.25,
        "event": event,
        "recipient": sent["address"] if sent else "zoe@example.org",
        "message": {"headers": {"message-id": "m-1@mg.shop.example", "to": "zoe@example.org"}},
        "user-variables": variables,
        **more,
    }


def mailgun(
    event: Any, key: str = SIGNING_KEY, at: str = str(NOW_S), token: str = "t" * 50, algorithm: str = "sha256"
) -> Callback:
    """The request."""
    signed = hmac.new(key.encode(), (at + token).encode(), algorithm).hexdigest()
    body = {"signature": {"timestamp": at, "token": token, "signature": signed}, "event-data": event}
    return Callback("mailgun", json.dumps(body).encode(), {"Content-Type": "application/json; charset=utf-8"})


# -- Vonage -----------------------------------------------------------------------------------------------------------

VONAGE_SECRET = "vonage-signature-secret"
PATH_SECRET = "p4th-secret-of-20-characters-or-more"


def vonage_account(name: str = "vo", method: str | None = "sha256", **more: Any) -> ProviderSettings:
    signature = {"signature": {"method": method, "secret": VONAGE_SECRET}} if method else {}
    made: dict[str, Any] = {"key": "abcd1234", "secret": "s", "from": "Shop", **signature, **more}
    return ProviderSettings(name=name, channel="sms", kind="vonage", **made)


def vonage_receipt(status: str, code: str = "0", sent: Any = TEXT, **more: Any) -> dict[str, Any]:
    """A delivery receipt."""
    return {
        "msisdn": sent["address"].removeprefix("+") if sent else "4915112345678",
        "to": "Shop",
        "network-code": "26201",
        "messageId": "0A0000001234567B",
        "price": "0.0333",
        "status": status,
        "scts": "2701150800",
        "err-code": code,
        "api-key": "abcd1234",
        **({"client-ref": subject_token(sent)} if sent else {}),
        "message-timestamp": datetime.fromtimestamp(NOW_S - 5, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "timestamp": str(NOW_S),
        "nonce": "c1b2",
        **more,
    }


def vonage_sig(fields: Mapping[str, Any], method: str = "sha256", secret: str = VONAGE_SECRET) -> str:
    """`sig`, as the documents describe it."""
    text = ""
    for name in sorted(fields):
        text += "&" + name + "=" + str(fields[name]).replace("&", "_").replace("=", "_")
    if method == "md5hash":
        return hashlib.md5((text + secret).encode()).hexdigest()
    return hmac.new(secret.encode(), text.encode(), method).hexdigest()


def vonage(
    fields: Mapping[str, Any],
    method: str | None = "sha256",
    secret: str = VONAGE_SECRET,
    form: bool = False,
    path: str = "",
) -> Callback:
    """The request, signed where there is a method."""
    sent = {**fields, "sig": vonage_sig(fields, method, secret)} if method else dict(fields)
    if form:
        return Callback("vonage", urlencode(sent).encode(), {"Content-Type": "application/x-www-form-urlencoded"}, path)
    return Callback("vonage", json.dumps(sent).encode(), {"Content-Type": "application/json"}, path)


# -- SES by SNS -------------------------------------------------------------------------------------------------------

TOPIC = "arn:aws:sns:eu-central-1:123456789012:ses-events"
CERTIFICATE_URL = (
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-9c6465fa7f48f5cacd23014631ec1136.pem"
)
SNS_KEY = rsa.generate_private_key(65537, 2048)
OTHER_SNS_KEY = rsa.generate_private_key(65537, 2048)


def certificate(key: rsa.RSAPrivateKey = SNS_KEY) -> bytes:
    """A certificate of the key, as PEM."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sns.amazonaws.com")])
    start = datetime.now(UTC) - timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    return (
        made.not_valid_before(start)
        .not_valid_after(start + timedelta(days=30))
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )


def ses_account(name: str = "ses", topics: Sequence[str] = (TOPIC,), **more: Any) -> ProviderSettings:
    made: dict[str, Any] = {
        "region": "eu-central-1",
        "access_key": "AKIA0000000000000000",
        "secret_key": "s",
        "from_address": "a@shop.example",
        "topic_arns": list(topics),
        **more,
    }
    return ProviderSettings(name=name, channel="email", kind="ses", **made)


def iso(milliseconds: int) -> str:
    """2027-01-15T08:00:00.000Z."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ses_event(event: str, sent: Any = MAIL, own: Any = None, **more: Any) -> dict[str, Any]:
    """What is in `Message`; `own` is the event's own object. Without `sent` it is the feedback of an identity: no tags."""
    mail = {
        "timestamp": iso(NOW - 9_000),
        "messageId": "0100-ses-1",
        "destination": [sent["address"] if sent else "zoe@example.org"],
        **({"tags": {"heliograph": [subject_token(sent, "ses")], "ses:configuration-set": ["x"]}} if sent else {}),
    }
    name = "eventType" if sent else "notificationType"
    key = {"Rendering Failure": "failure", "DeliveryDelay": "deliveryDelay"}.get(event, event.lower())
    return {name: event, "mail": mail, key: own if own is not None else {"timestamp": iso(NOW - 5_000)}, **more}


def sns_fields(message: str, **more: str | None) -> dict[str, Any]:
    """A notification before it is signed; a field that is None is left out."""
    fields: dict[str, Any] = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Subject": "Amazon SES Email Event Notification",
        "Message": message,
        "Timestamp": iso(NOW),
        "SignatureVersion": "2",
        "SigningCertURL": CERTIFICATE_URL,
        "UnsubscribeURL": "https://sns.eu-central-1.amazonaws.com/?Action=Unsubscribe",
        **more,
    }
    return {name: value for name, value in fields.items() if value is not None}


def sns_signature(fields: Mapping[str, Any], key: rsa.RSAPrivateKey = SNS_KEY, algorithm: Any = SHA256) -> str:
    """As the documents describe it: names and values on lines of their own, the last one ended too."""
    names = ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
    if fields["Type"] != "Notification":
        names = ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
    text = "".join(f"{name}\n{fields[name]}\n" for name in names if name in fields)
    return b64encode(key.sign(text.encode(), padding.PKCS1v15(), algorithm())).decode()


def sns_posted(fields: Mapping[str, Any]) -> Callback:
    """The request of signed fields."""
    headers = {
        "Content-Type": "text/plain; charset=UTF-8",
        "x-amz-sns-message-type": fields["Type"],
        "x-amz-sns-message-id": fields["MessageId"],
        "x-amz-sns-topic-arn": fields["TopicArn"],
    }
    return Callback("ses", json.dumps(fields).encode(), headers)


def ses(event: Any, key: Any = SNS_KEY, algorithm: Any = SHA256, **more: str | None) -> Callback:
    """The request; an event as text goes out as it is."""
    fields = sns_fields(event if isinstance(event, str) else json.dumps(event), **more)
    return sns_posted({**fields, "Signature": sns_signature(fields, key, algorithm)})


# -- BulkSMS and OneSignal --------------------------------------------------------------------------------------------


def bulksms_account(name: str = "bulk", **more: Any) -> ProviderSettings:
    made: dict[str, Any] = {"key": "id", "secret": "s", "callback_secret": PATH_SECRET, **more}
    return ProviderSettings(name=name, channel="sms", kind="bulksms", **made)


def bulksms_message(status: str, subtype: str | None = None, **more: Any) -> dict[str, Any]:
    """A sent message of the array, as the account's webhook brings it."""
    return {
        "id": "1234567890",
        "type": "SENT",
        "from": "Shop",
        "to": TEXT["address"].removeprefix("+"),
        "body": "Your code is 1",
        "submission": {"id": "1-00000000000522347562", "date": iso(NOW - 9_000)},
        "status": {"id": f"{status}.{subtype or 'null'}", "type": status, "subtype": subtype},
        "userSuppliedId": "ours",
        **more,
    }


def bulksms(messages: Any, path: str = f"/{PATH_SECRET}") -> Callback:
    """The request."""
    return Callback("bulksms", json.dumps(messages).encode(), {"Content-Type": "application/json"}, path)


def onesignal_account(name: str = "one", **more: Any) -> ProviderSettings:
    made: dict[str, Any] = {"app_id": "app", "api_key": "k", "callback_secret": PATH_SECRET, **more}
    return ProviderSettings(name=name, channel="push", kind="onesignal", **made)


def onesignal_event(kind: str, **more: Any) -> dict[str, Any]:
    """The body that docs/receipts.md gives to a stream."""
    return {
        "kind": f"message.push.{kind}",
        "event_id": "e-1",
        "message_id": "theirs",
        "subscription_id": "s-1",
        "timestamp": str(NOW_S - 5),
        **more,
    }


def onesignal(event: Any, path: str = f"/{PATH_SECRET}") -> Callback:
    """The request."""
    return Callback("onesignal", json.dumps(event).encode(), {"Content-Type": "application/json"}, path)


def reference(provider: str, name: str, sent: ChannelMessage, recipient: str | None = None) -> dict[str, Any]:
    """A view that has one message under this name."""
    fields = ("message_id", "notification_id", "tenant", "lane", "attempt")
    found = {"provider": provider, "reference": name, "recipient": recipient, "recorded_at": NOW}
    return {f"{provider}:{name}": {**{field: sent[field] for field in fields}, **found}}  # type: ignore[literal-required]
