"""An account of every kind in the registry, made of its worked file in docs/providers, and a message for it.

A new kind joins every test of this module's users by its row and its file. Every secret is CANARY, or a key made here.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic_core import to_json

from local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC
from runtime.settings import ProviderSettings
from schemas.channels import ROWS
from schemas.events import ChannelMessage
from tests.support.made import message
from vendors.registry import VENDORS, create_senders

CANARY = "c4n4ry-51a9be07"
"""What stands in every secret that is no key."""
DOCS = Path(__file__).resolve().parents[2] / "docs" / "providers"
KINDS: dict[str, str] = {vendor.kind: vendor.channel for vendor in VENDORS}
"""Kind → channel."""
HTTP_KINDS = [kind for kind in KINDS if kind not in ("smtp", "gmail", "apns")]
"""Those that speak HTTP/1.1."""


SPEAKS = {"gmail": "smtp"}
"""Kinds that the simulator knows by another name."""
TAKEN: dict[str, tuple[int, dict[str, str], bytes]] = {
    "twilio": (201, {}, b'{"sid": "SM1"}'),
    "fcm": (200, {}, b'{"name": "n1"}'),
    "sendgrid": (202, {"X-Message-Id": "sg1"}, b""),
    "mailgun": (200, {}, b'{"id": "<m1@mg.shop.example>", "message": "Queued. Thank you."}'),
    "ses": (200, {}, b'{"MessageId": "0100-ses1"}'),
    "vonage": (200, {}, b'{"message-count": "1", "messages": [{"status": "0", "message-id": "V1"}]}'),
    "bulksms": (201, {}, b'[{"id": "B1", "status": {"id": "ACCEPTED.null", "type": "ACCEPTED"}}]'),
    "sns": (200, {}, b"<PublishResponse><PublishResult><MessageId>n-1</MessageId>"),
    "onesignal": (200, {}, b'{"id": "o1", "external_id": null}'),
}
"""What each vendor that speaks HTTP/1.1 answers to a message that it takes: status, headers, body."""
BY_STATUS = frozenset({"apns", "sendgrid"})
"""Kinds whose status alone says that a message was taken."""


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@cache
def rsa_key() -> str:
    return pem(rsa.generate_private_key(65537, 2048))


@cache
def ec_key() -> str:
    return pem(ec.generate_private_key(ec.SECP256R1()))


def service_account(token_uri: str = "https://127.0.0.1/token") -> bytes:
    """A key file as Google's console writes it."""
    return to_json(
        {
            "type": "service_account",
            "project_id": "p",
            "client_email": "a@p.iam.gserviceaccount.com",
            "token_uri": token_uri,
            "private_key": rsa_key(),
        }
    )


def secret_file(key: str, token_uri: str) -> bytes:
    """What the file of a `*_file` key holds."""
    match key:
        case "credentials_file":
            return service_account(token_uri)
        case "key_file":
            return ec_key().encode()
        case _:
            return f"{CANARY}\n".encode()


def account(
    kind: str, folder: Path, port: int | None = None, /, *, token_uri: str = "https://127.0.0.1/token", **changed: Any
) -> ProviderSettings:
    """The worked file's account, with its files written to `folder`; at 127.0.0.1:port where one is given."""
    (entry,) = tomllib.loads((DOCS / f"{kind}.toml").read_text("utf-8"))["providers"]
    for key, value in entry.items():
        if key.endswith("_file"):
            file = folder / f"{kind}-{value}"
            file.write_bytes(secret_file(key, token_uri))
            entry[key] = str(file)
    if port is not None:
        here = {"base_url": f"http://127.0.0.1:{port}"} if "base_url" in entry else {"host": "127.0.0.1", "port": port}
        entry |= here
    return ProviderSettings(**{**entry, "callback_url": None} | changed if "callback_url" in entry else entry | changed)


def sender_of(provider: ProviderSettings) -> Any:
    """The account's sender."""
    (sender,) = create_senders(provider.channel, [provider])
    return sender


def to_send(kind: str, **fields: Any) -> ChannelMessage:
    """A message that an account of the kind can send."""
    row = ROWS[KINDS[kind]]
    parts = {"subject": "S", "text": "T", "html": None, "title": "T", "body": "B"}
    made = {name: value for name, value in parts.items() if name in row.parts}
    return message(**{"channel": row.name, "address": row.example, **made, **fields})


class SimulatorPorts(Protocol):
    """Where a simulator listens, and the folder of its credentials."""

    @property
    def http_port(self) -> int: ...
    @property
    def smtp_port(self) -> int: ...
    @property
    def apns_port(self) -> int: ...
    @property
    def data(self) -> Path: ...


def simulated(kind: str, simulator: SimulatorPorts, folder: Path, **changed: Any) -> ProviderSettings:
    """The account of the kind, at the simulator."""
    own: dict[str, dict[str, Any]] = {
        "smtp": {"tls": "none", "username": None, "password_file": None},
        "gmail": {"tls": "none", "username": None, "password_file": None, "credentials_file": None, "relay": True},
        # Its only way to our id; nothing listens there.
        "twilio": {"callback_url": "http://127.0.0.1:9/callbacks/twilio"},
        "fcm": {"credentials_file": str(simulator.data / "fcm-credentials.json"), "project_id": None},
        "apns": {
            "key_file": str(simulator.data / APNS_KEY_FILE),
            "key_id": APNS_KEY_ID,
            "team_id": APNS_TEAM_ID,
            "topic": APNS_TOPIC,
        },
    }
    return account(kind, folder, port_of(kind, simulator), **{**own.get(kind, {}), **changed})


def port_of(kind: str, simulator: SimulatorPorts) -> int:
    """Where the simulator plays the kind's vendor."""
    ports = {"smtp": simulator.smtp_port, "gmail": simulator.smtp_port, "apns": simulator.apns_port}
    return ports.get(kind, simulator.http_port)
