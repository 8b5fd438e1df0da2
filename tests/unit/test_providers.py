"""Each provider's table of codes, row by row, and its payloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic_core import to_json

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from senders.email.smtp import smtp_error
from senders.push.fcm import MESSAGE_ID_KEY, build_push, fcm_error
from senders.registry import create_senders
from senders.sender import ErrorClass
from senders.settings import checked_base_url
from senders.sms.twilio import build_sms, twilio_error
from tests.unit.test_outcomes import message

RCPT, MSG, THR, TRN, DOUBT, ACCT = (
    ErrorClass.PERMANENT_RECIPIENT, ErrorClass.PERMANENT_MESSAGE, ErrorClass.THROTTLED, ErrorClass.TRANSIENT,
    ErrorClass.IN_DOUBT, ErrorClass.ACCOUNT,
)  # fmt: skip


@pytest.mark.parametrize(
    ("code", "text", "phase", "expected"),
    [
        (550, "5.1.1 no such user", "RCPT", RCPT),
        (550, "no such user", "RCPT", RCPT),
        (551, "not local", "RCPT", RCPT),
        (553, "bad mailbox name", "RCPT", RCPT),
        (550, "5.2.1 mailbox disabled", "RCPT", RCPT),
        (550, "5.1.10 null MX", "RCPT", RCPT),
        (550, "refused", "DATA", MSG),
        (550, "5.7.1 policy", "DATA", MSG),
        (554, "5.7.1 blocked", "RCPT", MSG),
        (552, "5.3.4 too big", "DATA", MSG),
        (552, "5.2.3 too long", "DATA", MSG),
        (450, "4.7.1 greylisted", "RCPT", THR),
        (451, "4.7.1 slow down", "RCPT", THR),
        (421, "closing", "MAIL", THR),
        (454, "Throttling failure", "DATA", THR),
        (451, "4.3.0 try later", "DATA", TRN),
        (452, "4.2.2 full", "RCPT", TRN),
        (530, "5.7.0 authenticate first", "MAIL", ACCT),
        (535, "5.7.8 bad credentials", "EHLO", ACCT),
        (550, "5.7.1 sender not authorised", "MAIL", ACCT),
    ],
)
def test_smtp_code(code: int, text: str, phase: str, expected: ErrorClass) -> None:
    assert smtp_error(code, text, phase) is expected


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, 21211, RCPT), (400, 21614, RCPT), (400, 21610, RCPT), (400, 21606, MSG), (400, 99999, MSG), (404, None, MSG),
        (429, 20429, THR), (429, None, THR), (400, 21611, THR), (401, 20003, ACCT), (403, None, ACCT), (500, None, DOUBT),
        (503, None, DOUBT), (302, None, DOUBT),
    ],
)  # fmt: skip
def test_twilio_code(status: int, code: int | None, expected: ErrorClass) -> None:
    assert twilio_error(status, code) is expected


def fcm(code: str | None, text: str = "") -> dict[str, Any]:
    details = [{"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}] if code else []
    return {"error": {"message": text, "details": details}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, fcm("UNREGISTERED"), RCPT),
        (403, fcm("SENDER_ID_MISMATCH"), RCPT),
        (400, fcm("INVALID_ARGUMENT", "The registration token is not a valid FCM registration token"), RCPT),
        (400, {"error": {"details": [{"@type": "type.googleapis.com/google.rpc.BadRequest"}]}}, MSG),
        (400, fcm("INVALID_ARGUMENT", "Invalid data payload key: from"), MSG),
        (429, fcm("QUOTA_EXCEEDED"), THR),
        (401, fcm("THIRD_PARTY_AUTH_ERROR"), ACCT),
        (403, fcm(None), ACCT),
        (404, fcm(None), ACCT),
        (503, fcm("UNAVAILABLE"), TRN),
        (500, fcm("INTERNAL"), DOUBT),
        (502, "<html>", DOUBT),
        (302, None, DOUBT),
        (400, {"error": "not an object"}, MSG),
    ],
)
def test_fcm_code(status: int, body: Any, expected: ErrorClass) -> None:
    assert fcm_error(status, body) is expected


def test_push_carries_our_id_and_collapses_possible_duplicates() -> None:
    push = build_push(message(channel="push", address="tok", title="T", body="B", data=to_json({"a": "1", "n": 2})))
    assert push["token"] == "tok"
    assert push["notification"] == {"title": "T", "body": "B"}
    assert push["data"] == {"a": "1", "n": "2", MESSAGE_ID_KEY: message()["message_id"]}
    assert push["android"]["collapse_key"] == message()["message_id"]


def test_sms_loses_control_characters_but_no_emoji() -> None:
    fields = build_sms(
        message(channel="sms", address="+49151", text="a\0b\x1b\nc\u202ed 👩‍💻"), "+1500", "https://x/cb?a=1"
    )
    assert fields["body"] == "ab\ncd 👩‍💻"
    assert fields["status_callback"] == f"https://x/cb?a=1&message_id={message()['message_id']}"


def provider(**fields: Any) -> ProviderSettings:
    return ProviderSettings(**{"name": "p", "channel": "email", "kind": "smtp", **fields})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "pigeon"}, "there is no pigeon for email; there are: smtp"),
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
