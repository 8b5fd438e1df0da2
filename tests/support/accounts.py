"""An account of every kind in the registry, made of its worked file in docs/providers, and a message for it.

A new kind joins every test of this module's users by its row and its file. Every secret is CANARY, or a key made here.
"""

from __future__ import annotations

import tomllib
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic_core import to_json

from local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC, webpush
from runtime.settings import OutboundSettings, ProviderSettings
from schemas.channels import ROWS
from schemas.events import ChannelMessage
from tests.support.made import message
from vendors.registry import VENDORS, create_senders

CANARY = "c4n4ry-51a9be07-5d2e8c41"
"""What stands in every secret that is no key."""
DOCS = Path(__file__).resolve().parents[2] / "docs" / "providers"
KINDS: dict[str, str] = {vendor.kind: vendor.channel for vendor in VENDORS}
"""Kind → channel."""
HOOK_KINDS = [kind for kind, channel in KINDS.items() if channel == "webhook"]
GIVEN_URL_KINDS = frozenset(vendor.kind for vendor in VENDORS if vendor.asks_given_urls)
"""Those whose messages say where they go."""
_ELSEWHERE: dict[str, str] = {}
"""Kind of GIVEN_URL_KINDS → the server of the account that was made last: messages for it go there."""
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
    "webpush": (201, {"Location": "https://push.example/m/w1"}, b""),
    "webhook": (200, {}, b""),
    "slack": (200, {}, b"ok"),
    "teams": (202, {}, b""),
}
"""What each vendor that speaks HTTP/1.1 answers to a message that it takes: status, headers, body."""
BY_STATUS = frozenset({"apns", "sendgrid", "webpush", "webhook", "teams"})
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


def webhook_secret() -> str:
    """A secret as the specification of webhooks has them; what is in it is the canary twice."""
    return f"whsec_{b64encode(f'{CANARY}{CANARY}'.encode()).decode()}"


def secret_file(kind: str, key: str, token_uri: str) -> bytes:
    """What the file of a `*_file` key holds."""
    if kind == "webhook":
        return f"{webhook_secret()}\n".encode()
    match key:
        case "credentials_file":
            return service_account(token_uri)
        case "key_file" | "private_key_file":
            return ec_key().encode()
        case _:
            return f"{CANARY}\n".encode()


def account(
    kind: str,
    folder: Path,
    port: int | None = None,
    /,
    *,
    scheme: str = "http",
    token_uri: str = "https://127.0.0.1/token",
    **changed: Any,
) -> ProviderSettings:
    """The worked file's account, with its files written to `folder`; at 127.0.0.1:port where one is given."""
    (entry,) = tomllib.loads((DOCS / f"{kind}.toml").read_text("utf-8"))["providers"]
    for table in (entry, *(value for value in entry.values() if isinstance(value, dict))):
        for key in [key for key in table if key.endswith("_file")]:
            file = folder / f"{kind}-{table[key]}"
            file.write_bytes(secret_file(kind, key, token_uri))
            table[key] = str(file)
    base_url = f"{scheme}://127.0.0.1:{port or 9}"
    if kind in GIVEN_URL_KINDS:
        _ELSEWHERE[kind] = base_url
        entry |= {"hosts": ["127.0.0.1"]} if "hosts" in entry else {}
    elif port is not None:
        entry |= {"base_url": base_url} if "base_url" in entry else {"host": "127.0.0.1", "port": port}
    return ProviderSettings(**{**entry, "callback_url": None} | changed if "callback_url" in entry else entry | changed)


def sender_of(provider: ProviderSettings) -> Any:
    """The account's sender; this machine is open to it where it asks URLs that users give."""
    (sender,) = create_senders(provider.channel, [provider], OutboundSettings(allow=("127.0.0.1",)))
    return sender


def given_address(kind: str, base_url: str, name: str) -> str:
    """An address of GIVEN_URL_KINDS at a server, of whoever has the name there."""
    match kind:
        case "webpush":
            return webpush.subscription(base_url, name).address
        case _:
            return hook_at(kind, base_url, name)


def hook_at(kind: str, base_url: str, path: str) -> str:
    """The address of a receiver of HOOK_KINDS at a server, where the simulator has it too."""
    return f"{base_url}/hooks/{kind}/{path}"


def to_send(kind: str, **fields: Any) -> ChannelMessage:
    """A message that an account of the kind can send."""
    row = ROWS[KINDS[kind]]
    parts = {"subject": "S", "text": "T", "html": None, "title": "T", "body": "B"}
    made = {name: value for name, value in parts.items() if name in row.parts}
    address = (
        given_address(kind, _ELSEWHERE.get(kind, "http://127.0.0.1:9"), "x") if kind in GIVEN_URL_KINDS else row.example
    )
    platform = {"platform": kind} if kind in HOOK_KINDS else {}
    return message(**{"channel": row.name, "address": address, **platform, **made, **fields})


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
