"""Requests of the vendors that report, made and signed here; and a callbacks desk to send them to.

    desk.post(sendgrid([{"event": "delivered"}]))

Written from the vendors' documents a second time: nothing of the vendors package or the simulator is used.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

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

    def __post_init__(self) -> None:
        endpoint = CallbackEndpoint(self.broker, PUBLIC, lambda: self.now, remembered=self.remembered)
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


def sendgrid_event(event: str, sent: ChannelMessage | None = MAIL, provider: str = "sg", **more: Any) -> dict[str, Any]:
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
