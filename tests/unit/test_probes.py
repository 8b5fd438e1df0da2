"""What a probe makes of a vendor's answer, and what the doctor says to it: nothing is sent, and nothing is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_core import from_json, to_json

from console.commands.doctor_probes import check_probe
from console.commands.findings import Level
from runtime.settings import ProviderSettings
from tests.support.accounts import GIVEN_URL_KINDS, HTTP_KINDS, account, sender_of
from vendors.apns.sender import NO_DEVICE
from vendors.http import HttpResponse, NotSentError
from vendors.sender import ErrorClass, ProbeRefusal

SID = "AC" + "0" * 32
ACCT, TRN, THR, DOUBT = ErrorClass.ACCOUNT, ErrorClass.TRANSIENT, ErrorClass.THROTTLED, ErrorClass.IN_DOUBT

ASKED = [*(kind for kind in HTTP_KINDS if kind not in GIVEN_URL_KINDS), "apns"]


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


@pytest.fixture(scope="module")
def senders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A sender of every vendor over HTTP that can be asked, by kind."""
    folder = tmp_path_factory.mktemp("keys")
    made = {kind: sender_of(account(kind, folder)) for kind in ASKED}
    made["fcm"]._token._valid_until = 1 << 60  # as if it had an access token
    return made


async def probed(senders: dict[str, Any], kind: str, answer: HttpResponse | None) -> tuple[Any, Canned]:
    transport = Canned(answer)
    senders[kind]._http = transport
    return await senders[kind].probe(), transport


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
        ("twilio", said(200, [1]), ProbeRefusal(TRN, "unreadable answer")),
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
        ("sendgrid", said(200, {"scopes": ["mail.send"]}), None),
        ("sendgrid", said(200, {"scopes": []}), ProbeRefusal(ACCT, "the API key lacks the scope mail.send")),
        ("sendgrid", said(200, [1]), ProbeRefusal(ACCT, "the API key lacks the scope mail.send")),
        (
            "sendgrid",
            said(401, {"errors": [{"message": "authorization required"}]}),
            ProbeRefusal(ACCT, "401 (the API key is refused, or its credits are used up)"),
        ),
        ("mailgun", said(400, {"message": "to parameter is missing"}), None),
        ("mailgun", said(401, {"message": "Forbidden"}), ProbeRefusal(ACCT, "401 (the API key is refused)")),
        (
            "mailgun",
            said(404, {"message": "Domain not found: mg.shop.example"}),
            ProbeRefusal(TRN, "404 (the domain is not found, which may pass)"),
        ),
        (
            "mailgun",
            said(404),
            ProbeRefusal(ACCT, "404 not_the_api (the answer is not the API's: base_url, region or domain is wrong)"),
        ),
        ("ses", said(200, {"SendingEnabled": True}), None),
        ("ses", said(200, {"SendingEnabled": False}), ProbeRefusal(ACCT, "sending is not enabled in this region")),
        ("ses", said(403, {"__type": "AccessDeniedException"}), None),
        (
            "ses",
            said(403, {"__type": "com.amazon#InvalidSignatureException"}),
            ProbeRefusal(ACCT, "403 InvalidSignatureException (the signature is wrong, or our clock is)"),
        ),
        ("vonage", said(200, {"value": 1.0}), None),
        ("vonage", said(401), ProbeRefusal(ACCT, "401 (wrong credentials)")),
        ("bulksms", said(200, {"id": "1"}), None),
        ("bulksms", said(401), ProbeRefusal(ACCT, "401 (wrong credentials)")),
        ("sns", HttpResponse(200, {}, b"<GetSMSAttributesResponse/>"), None),
        ("sns", HttpResponse(403, {}, b"<Error><Code>AuthorizationError</Code></Error>"), None),
        (
            "sns",
            HttpResponse(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>"),
            ProbeRefusal(ACCT, "403 SignatureDoesNotMatch (the secret key is wrong, or our clock is)"),
        ),
        ("onesignal", said(200, {"notifications": []}), None),
        ("onesignal", said(403), ProbeRefusal(ACCT, "403 (the API key is not this app's)")),
        *((kind, None, ProbeRefusal(TRN, "ClientConnectorError")) for kind in ASKED),
    ],
)
async def test_probe_says_what_the_vendor_says(
    senders: dict[str, Any], kind: str, answer: HttpResponse | None, refusal: ProbeRefusal | None
) -> None:
    found, transport = await probed(senders, kind, answer)
    assert found == refusal
    assert len(transport.asked) == 1


async def test_probe_can_reach_nobody(senders: dict[str, Any]) -> None:
    _, twilio = await probed(senders, "twilio", said(401))
    _, fcm = await probed(senders, "fcm", said(401))
    _, apns = await probed(senders, "apns", said(401))
    assert [(method, url.rpartition("/")[2]) for method, url, _ in twilio.asked] == [("GET", f"{SID}.json")]
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
    entry = ProviderSettings(name="sms-1", channel="sms", kind="twilio")
    found = check_probe(entry, ProbeRefusal(error, "401 20003 (wrong)"), 3.0)
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


def test_account_that_asks_urls_of_users_cannot_be_probed_and_is_said_to_be_well(tmp_path: Path) -> None:
    from console.commands.doctor_probes import probe_all

    (found,) = probe_all([account("webpush", tmp_path)])
    assert (found.level, found.check) == (Level.OK, "probes")
    assert "cannot be probed without sending" in found.what
