"""Every vendor's probe against the simulator, with right and wrong credentials: it is answered, and the log stays empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic_core import from_json, to_json

from local.ports import LOOPBACK, PortBook
from local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC
from runtime.settings import ProviderSettings
from tests.contract.test_vendor_clients import Simulator, running, simulator
from vendors.registry import VENDORS, probe
from vendors.sender import ErrorClass, ProbeRefusal

__all__ = ["running", "simulator"]

UNPRIVILEGED_PORT = 9
"""Nobody listens there."""


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form)


def account(simulator: Simulator, kind: str, **changed: Any) -> ProviderSettings:
    """The simulator's account of a kind, with settings of one's own."""
    http, apns = (f"http://{LOOPBACK}:{port}" for port in (simulator.http_port, simulator.apns_port))
    keys: dict[str, dict[str, Any]] = {
        "smtp": {"host": LOOPBACK, "port": simulator.smtp_port, "tls": "none", "from_address": "a@example.test"},
        "twilio": {"base_url": http, "account_sid": "AC1", "auth_token": "right", "from": "+15005550006"},
        "fcm": {"base_url": http, "credentials_file": str(simulator.data / "fcm-credentials.json")},
        "apns": {
            "base_url": apns,
            "key_file": str(simulator.data / APNS_KEY_FILE),
            "key_id": APNS_KEY_ID,
            "team_id": APNS_TEAM_ID,
            "topic": APNS_TOPIC,
        },
    }
    (channel,) = {vendor.channel for vendor in VENDORS if vendor.kind == kind}
    return ProviderSettings(name=f"{kind}-1", channel=channel, kind=kind, timeout_s=5, **{**keys[kind], **changed})


@pytest.fixture
def wrong(simulator: Simulator, tmp_path: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Settings of each kind that its vendor refuses."""
    simulator.request("/twilio/auth_tokens", ["right"], "PUT")
    service = from_json((simulator.data / "fcm-credentials.json").read_bytes())
    service["private_key"] = pem(rsa.generate_private_key(65537, 2048)).decode()
    (tmp_path / "account.json").write_bytes(to_json(service))
    (tmp_path / "key.p8").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    yield {
        "smtp": {"username": "u", "password": "p"},
        "twilio": {"auth_token": "wrong"},
        "fcm": {"credentials_file": str(tmp_path / "account.json")},
        "apns": {"key_file": str(tmp_path / "key.p8")},
    }
    simulator.request("/twilio/auth_tokens", [], "PUT")


SAYS = {
    "smtp": "the server offers no way to log in with a password (it offers none)",
    "twilio": "401 20003 (wrong credentials, or no permission)",
    "fcm": "no access token (RefreshError: invalid_grant: Invalid JWT Signature.)",
    "apns": "403 InvalidProviderToken (the provider token is wrong, or its key was revoked)",
}
ELSEWHERE: dict[str, dict[str, Any]] = {
    "smtp": {"port": UNPRIVILEGED_PORT},
    "twilio": {"base_url": f"http://{LOOPBACK}:{UNPRIVILEGED_PORT}"},
    "fcm": {"base_url": f"http://{LOOPBACK}:{UNPRIVILEGED_PORT}"},
    "apns": {"base_url": f"http://{LOOPBACK}:{UNPRIVILEGED_PORT}"},
}


def test_every_kind_of_account_is_here() -> None:
    assert {*SAYS} == {*ELSEWHERE} == {vendor.kind for vendor in VENDORS}


@pytest.mark.parametrize("kind", sorted(SAYS))
def test_probe_of_every_vendor_sends_nothing(simulator: Simulator, wrong: dict[str, Any], kind: str) -> None:
    assert probe(account(simulator, kind)) is None
    assert probe(account(simulator, kind, **wrong[kind])) == ProbeRefusal(ErrorClass.ACCOUNT, SAYS[kind])
    gone = probe(account(simulator, kind, **ELSEWHERE[kind]))
    assert gone is not None
    assert gone.error is ErrorClass.TRANSIENT
    assert simulator.request("/accepted") == []


class Gate:
    """Takes one name and password."""

    def __call__(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, given: Any) -> AuthResult:
        right = isinstance(given, LoginPassword) and (given.login, given.password) == (b"u", b"right")
        return AuthResult(success=right, handled=False)


def test_smtp_password_is_tried() -> None:
    book = PortBook()
    port = book.reserve("smtp with a password")
    book.close()
    server = Controller(object(), LOOPBACK, port, authenticator=Gate(), auth_require_tls=False)
    server.start()
    try:
        keys: dict[str, Any] = {
            "host": LOOPBACK,
            "port": port,
            "tls": "none",
            "from_address": "a@example.test",
            "username": "u",
        }
        made = [
            ProviderSettings(name="m", channel="email", kind="smtp", **{**keys, "password": password})
            for password in ("right", "no")
        ]
        assert probe(made[0]) is None
        refused = probe(made[1])
        assert refused == ProbeRefusal(ErrorClass.ACCOUNT, "535 5.7.8 (wrong credentials)")
    finally:
        server.stop()
