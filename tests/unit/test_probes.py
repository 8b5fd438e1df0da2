"""What a probe makes of a vendor's answer, and what the doctor says to it: nothing is sent, and nothing is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic_core import from_json, to_json

from console.commands.doctor_probes import check_probe
from console.commands.findings import Level
from runtime.settings import ProviderSettings
from vendors.apns.sender import NO_DEVICE
from vendors.http import HttpResponse, NotSentError
from vendors.registry import create_senders
from vendors.sender import ErrorClass, ProbeRefusal

ACCT, TRN, THR, DOUBT = ErrorClass.ACCOUNT, ErrorClass.TRANSIENT, ErrorClass.THROTTLED, ErrorClass.IN_DOUBT


class Canned:
    """A transport with one answer, or no connection; keeps what it was asked."""

    def __init__(self, answer: HttpResponse | None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, bytes]] = []

    async def post(self, url: str, *, body: bytes, **_: Any) -> HttpResponse:
        return self._answer("POST", url, body)

    async def get(self, url: str, **_: Any) -> HttpResponse:
        return self._answer("GET", url, b"")

    def _answer(self, method: str, url: str, body: bytes) -> HttpResponse:
        self.asked.append((method, url, body))
        if self.answer is None:
            raise NotSentError("ClientConnectorError")
        return self.answer


def said(status: int, body: Any = None) -> HttpResponse:
    return HttpResponse(status, {}, b"" if body is None else to_json(body))


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form)


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An account of every vendor over HTTP, by kind."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "key.p8").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    service = {
        "type": "service_account",
        "project_id": "p",
        "client_email": "a@p.iam.gserviceaccount.com",
        "token_uri": "https://127.0.0.1/token",
        "private_key": pem(rsa.generate_private_key(65537, 2048)).decode(),
    }
    (folder / "account.json").write_bytes(to_json(service))
    keys: dict[str, tuple[str, dict[str, Any]]] = {
        "twilio": ("sms", {"account_sid": "AC1", "auth_token": "t", "from": "+1500"}),
        "fcm": ("push", {"credentials_file": str(folder / "account.json")}),
        "apns": (
            "push",
            {"key_file": str(folder / "key.p8"), "key_id": "K1", "team_id": "T1", "topic": "org.example.app"},
        ),
    }
    made: dict[str, Any] = {}
    for kind, (channel, own) in keys.items():
        (made[kind],) = create_senders(
            channel,
            [ProviderSettings(name=kind, channel=channel, kind=kind, **own)],
        )
    made["fcm"]._valid_until = 1 << 60  # as if it had an access token
    return made


async def probed(accounts: dict[str, Any], kind: str, answer: HttpResponse | None) -> tuple[Any, Canned]:
    transport = Canned(answer)
    account = accounts[kind]
    if kind == "twilio":
        account._client.http_client._http = transport
    else:
        account._http = transport
    return await account.probe(), transport


FORBIDDEN = {"error": {"code": 403, "status": "PERMISSION_DENIED"}}


@pytest.mark.parametrize(
    ("kind", "answer", "refusal"),
    [
        ("twilio", said(200, {"sid": "AC1", "status": "active"}), None),
        (
            "twilio",
            said(200, {"sid": "AC1", "status": "suspended"}),
            ProbeRefusal(ACCT, "the account is suspended"),
        ),
        (
            "twilio",
            said(401, {"code": 20003}),
            ProbeRefusal(ACCT, "401 20003 (wrong credentials, or no permission)"),
        ),
        ("twilio", said(404, {"code": 20404}), ProbeRefusal(ACCT, "404 20404 (no such account)")),
        ("twilio", said(429, {"code": 20429}), ProbeRefusal(THR, "429 20429 (too many requests)")),
        ("twilio", said(502), ProbeRefusal(DOUBT, "502 (bad gateway)")),
        ("twilio", said(418), ProbeRefusal(TRN, "418 (not in the table)")),
        ("twilio", said(200, [1]), ProbeRefusal(TRN, "unreadable answer (AttributeError)")),
        ("fcm", said(200, {"name": "projects/p/messages/fake_message_id"}), None),
        ("fcm", said(403, FORBIDDEN), ProbeRefusal(ACCT, "403 (the service account may not send)")),
        (
            "fcm",
            said(404),
            ProbeRefusal(ACCT, "404 (without UNREGISTERED it is the project that is not found)"),
        ),
        ("apns", said(400, {"reason": "BadDeviceToken"}), None),
        (
            "apns",
            said(403, {"reason": "InvalidProviderToken"}),
            ProbeRefusal(ACCT, "403 InvalidProviderToken (the provider token is wrong, or its key was revoked)"),
        ),
        (
            "apns",
            said(403, {"reason": "ExpiredProviderToken"}),
            ProbeRefusal(ACCT, "403 ExpiredProviderToken (the provider token is over an hour old)"),
        ),
        ("apns", said(503), ProbeRefusal(DOUBT, "503 (not available: it does not say since when)")),
        *((kind, None, ProbeRefusal(TRN, "ClientConnectorError")) for kind in ("twilio", "fcm", "apns")),
    ],
)
async def test_probe_says_what_the_vendor_says(
    accounts: dict[str, Any], kind: str, answer: HttpResponse | None, refusal: ProbeRefusal | None
) -> None:
    found, transport = await probed(accounts, kind, answer)
    assert found == refusal
    assert len(transport.asked) == 1


async def test_probe_can_reach_nobody(accounts: dict[str, Any]) -> None:
    _, twilio = await probed(accounts, "twilio", said(401))
    _, fcm = await probed(accounts, "fcm", said(401))
    _, apns = await probed(accounts, "apns", said(401))
    assert [(method, url.rpartition("/")[2]) for method, url, _ in twilio.asked] == [("GET", "AC1.json")]
    ((_, _, body),) = fcm.asked
    assert from_json(body)["validate_only"] is True
    ((_, path, _),) = apns.asked
    assert path == f"/3/device/{NO_DEVICE}"


@pytest.mark.parametrize(
    ("error", "level", "cure"),
    [
        (ACCT, Level.PROBLEM, "correct the credentials in the [[providers]] entry sms-1, or settle it with the vendor"),
        (THR, Level.WARNING, "ask again later"),
        (TRN, Level.PROBLEM, "correct the address in the [[providers]] entry sms-1, or the way there; else wait"),
        (DOUBT, Level.PROBLEM, "correct the address in the [[providers]] entry sms-1, or the way there; else wait"),
        (ErrorClass.PERMANENT_MESSAGE, Level.PROBLEM, "correct the credentials"),
    ],
)
def test_doctor_says_what_a_refusal_means(error: ErrorClass, level: Level, cure: str) -> None:
    account = ProviderSettings(name="sms-1", channel="sms", kind="twilio")
    found = check_probe(account, ProbeRefusal(error, "401 20003 (wrong)"), 3.0)
    assert (found.level, found.check) == (level, "probes")
    assert "sms-1 (twilio)" in found.what
    assert "401 20003 (wrong)" in found.what
    assert found.fix is not None
    assert found.fix.startswith(cure)


def test_account_that_is_served_is_well() -> None:
    found = check_probe(ProviderSettings(name="sms-1", channel="sms", kind="twilio"), None, 12.3)
    assert found.level is Level.OK
    assert found.what == "the vendor of sms-1 (twilio) takes its credentials, 12 ms"


def test_account_whose_settings_are_wrong_is_not_probed(tmp_path: Path) -> None:
    """The doctor's line on its settings says why."""
    from console.commands.doctor_probes import probe_all

    broken = ProviderSettings(name="push-1", channel="push", kind="fcm", credentials_file=str(tmp_path / "none"))  # type: ignore[call-arg]
    assert list(probe_all([broken])) == []
