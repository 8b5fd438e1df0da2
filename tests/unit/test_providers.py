"""What each provider makes of an answer, and its payloads; the tables row by row are in test_codes.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic_core import to_json

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from tests.support.made import NOW, message
from vendors.codes import CodeRule
from vendors.fcm.codes import CODES as FCM_CODES
from vendors.fcm.sender import MESSAGE_ID_KEY, FcmSender, build_push, fcm_code
from vendors.http import HttpResponse
from vendors.http_account import Answer
from vendors.registry import create_senders
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent
from vendors.settings import checked_base_url
from vendors.twilio.codes import CODES as TWILIO_CODES
from vendors.twilio.sender import TwilioSender, build_sms

RCPT, MSG, THR, TRN, DOUBT, ACCT = (
    ErrorClass.PERMANENT_RECIPIENT,
    ErrorClass.PERMANENT_MESSAGE,
    ErrorClass.THROTTLED,
    ErrorClass.TRANSIENT,
    ErrorClass.IN_DOUBT,
    ErrorClass.ACCOUNT,
)


def of(found: CodeRule | None) -> ErrorClass | None:
    return found.error if found else None


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, 21211, RCPT),
        (400, 21614, RCPT),
        (400, 21610, RCPT),
        (400, 21606, MSG),
        (400, 21612, MSG),
        (400, 99999, None),
        (404, None, None),
        (404, 20404, ACCT),
        (429, 20429, THR),
        (429, None, THR),
        (400, 21611, THR),
        (401, 20003, ACCT),
        (403, None, ACCT),
        (500, None, DOUBT),
        (503, None, DOUBT),
        (503, 20503, DOUBT),
        (302, None, None),
    ],
)
def test_twilio_answer(status: int, code: int | None, expected: ErrorClass | None) -> None:
    answer = twilio_sender().read(said(status, {} if code is None else {"code": code}))
    assert isinstance(answer, Answer)
    assert of(TWILIO_CODES.find(*answer.keys)) is expected


def fcm(code: str | None, text: str = "") -> dict[str, Any]:
    details = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}] if code else []
    return {"error": {"message": text, "details": details}}


BAD_REQUEST = {"@type": "type.googleapis.com/google.rpc.BadRequest"}
TOKEN_TEXT = "The registration token is not a valid FCM registration token"


def violated(field: str) -> dict[str, Any]:
    """INVALID_ARGUMENT with both details, as FCM writes it."""
    body = fcm("INVALID_ARGUMENT", TOKEN_TEXT)
    body["error"]["details"].append({**BAD_REQUEST, "fieldViolations": [{"field": field}]})
    return body


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, fcm("UNREGISTERED"), RCPT),
        (403, fcm("SENDER_ID_MISMATCH"), RCPT),
        (400, fcm("INVALID_ARGUMENT", TOKEN_TEXT), RCPT),
        (400, violated("message.token"), RCPT),
        (400, violated("message.data"), MSG),
        (400, {"error": {"message": TOKEN_TEXT, "details": [BAD_REQUEST]}}, MSG),
        (400, fcm("INVALID_ARGUMENT", "Invalid data payload key: from"), MSG),
        (429, fcm("QUOTA_EXCEEDED"), THR),
        (429, fcm(None), THR),
        (401, fcm("THIRD_PARTY_AUTH_ERROR"), ACCT),
        (403, fcm(None), ACCT),
        (404, fcm(None), ACCT),
        (503, fcm("UNAVAILABLE"), DOUBT),
        (500, fcm("INTERNAL"), DOUBT),
        (502, "<html>", DOUBT),
        (302, None, None),
        (400, {"error": "not an object"}, MSG),
        (400, {"error": {"details": "not a list"}}, MSG),
        (400, fcm("NEW_CODE"), None),
        (500, fcm("UNSPECIFIED_ERROR"), None),
    ],
)
def test_fcm_answer(status: int, body: Any, expected: ErrorClass | None) -> None:
    assert of(FCM_CODES.find(fcm_code(body) or str(status))) is expected


# -- answers through a sender -----------------------------------------------------------------------------------------


class Canned:
    """A transport with one answer."""

    def __init__(self, answer: HttpResponse) -> None:
        self.answer = answer

    async def post(self, *_: Any, **__: Any) -> HttpResponse:
        return self.answer


def said(status: int, body: Any, retry_after: str | None = None) -> HttpResponse:
    return HttpResponse(status, {"retry-after": retry_after} if retry_after else {}, to_json(body))


def fcm_sender(tmp_path: Path) -> FcmSender:
    key = rsa.generate_private_key(65537, 2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {
        "type": "service_account",
        "project_id": "p",
        "client_email": "a@p.iam.gserviceaccount.com",
        "token_uri": "https://127.0.0.1/token",
        "private_key": key.private_bytes(*form).decode(),
    }
    file = tmp_path / "credentials.json"
    file.write_bytes(to_json(account))
    (sender,) = create_senders("push", [provider(channel="push", kind="fcm", credentials_file=str(file))])
    assert isinstance(sender, FcmSender)
    sender._token._valid_until = 1 << 60  # as if it had an access token
    return sender


async def through_fcm(sender: FcmSender, answer: HttpResponse) -> SendResult:
    sender._http = Canned(answer)  # type: ignore[assignment]
    return await sender.send(message(channel="push", address="tok", title="T"))


def twilio_sender() -> TwilioSender:
    keys = {"account_sid": "AC1", "auth_token": "t", "from": "+1500"}
    (sender,) = create_senders("sms", [provider(channel="sms", kind="twilio", **keys)])
    assert isinstance(sender, TwilioSender)
    return sender


async def through_twilio(answer: HttpResponse) -> SendResult:
    sender = twilio_sender()
    sender._clock = lambda: NOW
    sender._http = Canned(answer)  # type: ignore[assignment]
    return await sender.send(message(channel="sms", address="+49151", text="x"))


async def test_mismatch_is_the_accounts_fault_until_a_push_was_taken(tmp_path: Path) -> None:
    sender = fcm_sender(tmp_path)
    mismatch = said(403, fcm("SENDER_ID_MISMATCH"))
    assert await through_fcm(sender, mismatch) == Retry(ACCT, "403 SENDER_ID_MISMATCH unproven")
    assert await through_fcm(sender, said(200, {"name": "n"})) == Sent("n")
    assert await through_fcm(sender, mismatch) == Rejected(RCPT, "403 SENDER_ID_MISMATCH")


DATE, BEFORE_DATE = "Fri, 15 Jan 2027 08:00:30 GMT", NOW


@pytest.mark.parametrize(("header", "wait_s"), [(None, 60.0), ("7", 7.0), (DATE, 30.0), ("soon", 60.0)])
async def test_fcm_quota_waits_as_asked_and_else_a_minute(tmp_path: Path, header: str | None, wait_s: float) -> None:
    sender = fcm_sender(tmp_path)
    sender._clock = lambda: BEFORE_DATE
    assert await through_fcm(sender, said(429, fcm("QUOTA_EXCEEDED"), header)) == Retry(
        THR, "429 QUOTA_EXCEEDED", wait_s
    )


@pytest.mark.parametrize("header", ["9", "Fri, 15 Jan 2027 08:00:09 GMT"])
async def test_retry_after_of_503_is_passed_on(tmp_path: Path, header: str) -> None:
    sender = fcm_sender(tmp_path)
    sender._clock = lambda: NOW
    doubt = await through_fcm(sender, said(503, fcm("UNAVAILABLE"), header))
    assert isinstance(doubt, InDoubt)
    assert (doubt.code, doubt.retry_after_s) == ("503 UNAVAILABLE", 9.0)
    doubt = await through_twilio(said(503, {"code": 20503}, "9"))
    assert isinstance(doubt, InDoubt)
    assert (doubt.code, doubt.retry_after_s) == ("503 20503", 9.0)


async def test_twilios_429_waits_as_asked() -> None:
    assert await through_twilio(said(429, {"code": 20429}, "3")) == Retry(THR, "429 20429", 3.0)


async def test_stop_says_so_and_an_unknown_code_is_tried_again() -> None:
    stopped = await through_twilio(said(400, {"code": 21610}))
    assert isinstance(stopped, Rejected)
    assert stopped.error is RCPT
    assert stopped.opted_out
    wrong = await through_twilio(said(400, {"code": 21211}))
    assert wrong == Rejected(RCPT, "400 21211")
    assert isinstance(wrong, Rejected)
    assert not wrong.opted_out
    assert await through_twilio(said(400, {"code": 98765})) == Retry(TRN, "400 98765")
    assert await through_twilio(said(302, {})) == InDoubt("302")
    assert await through_twilio(HttpResponse(200, {}, b"{")) == InDoubt("unreadable answer")


def test_push_carries_our_id_and_collapses_possible_duplicates() -> None:
    push = build_push(message(channel="push", address="tok", title="T", body="B", data=to_json({"a": "1", "n": 2})))
    assert push["token"] == "tok"
    assert push["notification"] == {"title": "T", "body": "B"}
    assert push["data"] == {"a": "1", "n": "2", MESSAGE_ID_KEY: message()["message_id"]}
    assert push["android"]["collapse_key"] == message()["message_id"]


def test_sms_has_the_clean_text_and_says_where_to_report() -> None:
    fields = build_sms(message(channel="sms", address="+49151", text="a\0b\x1b\nc 👩‍💻"), "+1500", "https://x/cb?a=1")
    assert fields["Body"] == "ab\nc 👩‍💻"
    assert fields["StatusCallback"].startswith(
        f"https://x/cb?a=1&message_id={message()['message_id']}&notification_id="
    )


def provider(**fields: Any) -> ProviderSettings:
    return ProviderSettings(**{"name": "p", "channel": "email", "kind": "smtp", **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "pigeon"}, "there is no pigeon for email; there are: smtp, "),
        ({"channel": "sms"}, "no provider sends email"),
        ({"host": "h", "port": 25}, "from_address: Field required"),
        ({"host": "h", "port": 25, "from_address": "x"}, "from_address must be an e-mail address"),
        ({"host": "h", "port": 25, "from_address": "a@b.c", "pasword": "x"}, "pasword: Extra inputs are not permitted"),
        (
            {"host": "h", "port": 25, "from_address": "a@b.c", "password_file": "/does/not/exist"},
            "cannot read password_file",
        ),
    ],
)
def test_wrong_provider_settings_say_what_is_wrong(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        create_senders("email", [provider(**fields)])


def test_wrong_credentials_file_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text("{}")
    with pytest.raises(SettingsError, match="not a service account's key file"):
        create_senders("push", [provider(channel="push", kind="fcm", credentials_file=str(file))])


@pytest.mark.parametrize(
    "url", ["http://example.org", "ftp://127.0.0.1", "127.0.0.1", "http://127.0.0.1.example.org", "https://"]
)
def test_plain_http_to_another_machine_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        checked_base_url(provider(), url)
    assert checked_base_url(provider(), "http://127.0.0.1:80/p/") == "http://127.0.0.1:80/p"
