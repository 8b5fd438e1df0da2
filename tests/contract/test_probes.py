"""Every vendor's probe against the simulator, with right and wrong credentials: it is answered, and the log stays empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from pydantic_core import from_json, to_json

from local.ports import LOOPBACK, PortBook
from local.simulator import WRONG_SECRET
from runtime.settings import ProviderSettings
from tests.contract.test_vendor_clients import Simulator, running, simulator
from tests.support.accounts import CANARY, GIVEN_URL_KINDS, KINDS, ec_key, rsa_key, simulated
from vendors.registry import probe
from vendors.sender import ErrorClass, ProbeRefusal

__all__ = ["running", "simulator"]

UNPRIVILEGED_PORT = 9
"""Nobody listens there."""


@pytest.fixture
def wrong(simulator: Simulator, tmp_path: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Settings of each kind that its vendor refuses."""
    simulator.request("/twilio/auth_tokens", [CANARY], "PUT")
    service = from_json((simulator.data / "fcm-credentials.json").read_bytes())
    service["private_key"] = rsa_key()
    (tmp_path / "account.json").write_bytes(to_json(service))
    (tmp_path / "key.p8").write_text(ec_key())
    yield {
        "smtp": {"username": "u", "password": "p"},
        "gmail": {"username": "u", "password": "p", "relay": False},
        "twilio": {"auth_token": "wrong", "auth_token_file": None},
        "fcm": {"credentials_file": str(tmp_path / "account.json")},
        "apns": {"key_file": str(tmp_path / "key.p8")},
        **{kind: {"api_key": WRONG_SECRET, "api_key_file": None} for kind in ("sendgrid", "mailgun", "onesignal")},
        **{kind: {"secret": WRONG_SECRET, "secret_file": None} for kind in ("vonage", "bulksms")},
        **{kind: {"access_key": WRONG_SECRET} for kind in ("ses", "sns")},
    }
    simulator.request("/twilio/auth_tokens", [], "PUT")


SAYS = {
    "smtp": "the server offers no way to log in with a password (it offers none)",
    "gmail": "the server offers no way to log in with a password (it offers none)",
    "twilio": "401 20003 (wrong credentials, or no permission)",
    "fcm": "no access token (RefreshError: invalid_grant: Invalid JWT Signature.)",
    "apns": "403 InvalidProviderToken (the provider token is wrong, or its key was revoked)",
    "sendgrid": "401 (the API key is refused, or its credits are used up)",
    "mailgun": "401 (the API key is refused)",
    "ses": "403 UnrecognizedClientException (no such access key)",
    "vonage": "401 (wrong credentials)",
    "bulksms": "401 (wrong credentials)",
    "sns": "403 InvalidClientTokenId (no such access key)",
    "onesignal": "403 (the API key is not this app's)",
}


def test_every_kind_of_account_that_can_be_asked_is_here() -> None:
    assert {*SAYS} == {*KINDS} - GIVEN_URL_KINDS


@pytest.mark.parametrize("kind", sorted(SAYS))
def test_probe_of_every_vendor_sends_nothing(
    simulator: Simulator, wrong: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    assert probe(simulated(kind, simulator, tmp_path)) is None
    assert probe(simulated(kind, simulator, tmp_path, **wrong[kind])) == ProbeRefusal(ErrorClass.ACCOUNT, SAYS[kind])
    elsewhere: dict[str, Any] = (
        {"port": UNPRIVILEGED_PORT}
        if kind in ("smtp", "gmail")
        else {"base_url": f"http://{LOOPBACK}:{UNPRIVILEGED_PORT}"}
    )
    gone = probe(simulated(kind, simulator, tmp_path, **elsewhere))
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
