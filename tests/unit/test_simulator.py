"""The simulator's vendors and faults as pure logic: no socket."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from local.simulator import fcm, smtp, twilio
from local.simulator.faults import FINE, FaultBook, FaultError, Mode

KINDS = ("smtp", "twilio", "fcm")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def book(*payloads: dict[str, Any], draws: list[float] | None = None) -> FaultBook:
    left = iter(draws or [])
    faults = FaultBook(KINDS, draw=lambda: next(left))
    for payload in payloads:
        faults.add(payload)
    return faults


def as_json(response: web.Response) -> Any:
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ([], "a fault is a JSON object"),
        ({"mode": "429"}, "kind must be one of fcm, smtp, twilio"),
        ({"kind": "fax", "mode": "429"}, "kind must be one of"),
        ({"kind": "smtp", "mode": "502"}, "mode must be one of slow, 429, 500"),
        ({"kind": "smtp", "mode": "429", "rate": 1.5}, "rate must be a number from 0 to 1"),
        ({"kind": "smtp", "mode": "429", "rate": True}, "rate must be"),
        ({"kind": "smtp", "mode": "slow"}, "slow needs latency_ms"),
        ({"kind": "smtp", "mode": "slow", "latency_ms": "x"}, "latency_ms must be"),
        ({"kind": "smtp", "mode": "429", "times": 0}, "times must be"),
        ({"kind": "smtp", "mode": "429", "match": 1}, "match must be"),
        ({"kind": "smtp", "mode": "429", "retry_after_date": 1}, "retry_after_date must be"),
        ({"kind": "smtp", "mode": "429", "retry-after": 1}, "unknown field retry-after"),
    ],
)
def test_bad_fault_is_refused_with_what_is_wrong(payload: object, says: str) -> None:
    with pytest.raises(FaultError, match=says):
        FaultBook(KINDS).add(payload)


def test_no_fault_is_fine() -> None:
    assert book().decide("smtp", "a@b.c") is FINE


def test_fault_applies_to_its_kind_and_recipients_only() -> None:
    faults = book({"kind": "smtp", "mode": "reject", "match": "@bad."})
    assert faults.decide("smtp", "a@bad.test").mode is Mode.REJECT
    assert faults.decide("smtp", "a@good.test").mode is None
    assert faults.decide("fcm", "a@bad.test").mode is None


def test_fault_with_times_ends_after_them() -> None:
    faults = book({"kind": "fcm", "mode": 429, "times": 2})
    assert [faults.decide("fcm", "t").mode for _ in range(3)] == [Mode.THROTTLE, Mode.THROTTLE, None]
    assert faults.faults[0].as_json()["applied"] == 2


def test_rate_is_the_share_of_requests() -> None:
    faults = book({"kind": "fcm", "mode": "500", "rate": 0.5}, draws=[0.49, 0.5])
    assert [faults.decide("fcm", "t").mode for _ in range(2)] == [Mode.FAIL, None]


def test_slowness_adds_to_the_next_fault() -> None:
    faults = book(
        {"kind": "fcm", "mode": "slow", "latency_ms": 100},
        {"kind": "fcm", "mode": "500", "latency_ms": 50},
        {"kind": "fcm", "mode": "429"},
    )
    verdict = faults.decide("fcm", "t")
    assert verdict.mode is Mode.FAIL
    assert verdict.latency_s == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("fields", "header"),
    [
        ({}, None),
        ({"retry_after_s": 7}, "7"),
        ({"retry_after_s": 60, "retry_after_date": True}, "Fri, 02 Jan 2026 03:05:05 GMT"),
        ({"retry_after_date": "Thu, 01 Jan 2026 00:00:00 GMT"}, "Thu, 01 Jan 2026 00:00:00 GMT"),
    ],
)
def test_retry_after_is_seconds_or_a_date(fields: dict[str, Any], header: str | None) -> None:
    verdict = book({"kind": "fcm", "mode": "429", **fields}).decide("fcm", "t")
    assert verdict.retry_after(NOW) == header


def test_clear_removes_every_fault() -> None:
    faults = book({"kind": "fcm", "mode": "429"}, {"kind": "smtp", "mode": "429"})
    assert faults.clear() == 2
    assert faults.decide("fcm", "t") is FINE


# ---------------------------------------------------------------- SMTP


@pytest.mark.parametrize(
    ("mail", "expected"),
    [
        (b"Message-ID: <abc@heliograph>\r\n\r\n", "abc"),
        (b"Subject: x\r\nmessage-id:\r\n <abc@heliograph>\r\n\r\n", "abc"),
        (b"Message-ID: <abc@h>\r\nX-Heliograph-Message-Id: def\r\n\r\n", "def"),
        (b"Subject: x\r\n\r\nMessage-ID: <in-the-body@h>\r\n", None),
        (b"Subject: Message-ID: <no@h>\r\n\r\n", None),
    ],
)
def test_message_id_comes_from_the_headers_only(mail: bytes, expected: str | None) -> None:
    assert smtp.our_message_id(mail) == expected


@pytest.mark.parametrize(
    ("stuffed", "plain"),
    [(b"a\r\n..b\r\n", b"a\r\n.b\r\n"), (b"..\r\n", b".\r\n"), (b".a\r\nb.\r\n", b"a\r\nb.\r\n"), (b"", b"")],
)
def test_dot_stuffing_is_undone(stuffed: bytes, plain: bytes) -> None:
    assert smtp.unstuff(stuffed) == plain


# ---------------------------------------------------------------- Twilio

GOOD_SMS = {"To": "+4915112345678", "From": "+15005550006", "Body": "hello"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"To": ""}, 21604),
        ({"From": ""}, 21603),
        ({"Body": ""}, 21602),
        ({"Body": "x" * 1601}, 21617),
        ({"To": "0151123"}, 21211),
        ({"To": "+15005550001"}, 21211),
        ({"To": "+15005550004"}, 21610),
        ({"To": "+15005550009"}, 21614),
    ],
)
def test_sms_twilio_would_refuse_is_refused_with_its_code(change: dict[str, str], code: int) -> None:
    refused = twilio.refusal(GOOD_SMS | change)
    assert refused is not None
    body = as_json(refused)
    assert (refused.status, body["code"], body["status"]) == (400, code, 400)
    assert body["more_info"].endswith(f"/{code}")


def test_good_sms_is_not_refused() -> None:
    assert twilio.refusal(GOOD_SMS) is None


@pytest.mark.parametrize(
    ("header", "ok"),
    [
        ("Basic QUMxOnNlY3JldA==", True),
        ("Basic QUMyOnNlY3JldA==", False),
        ("Basic ???", False),
        ("Bearer x", False),
        ("", False),
    ],
)
def test_basic_authentication_must_name_the_account(header: str, ok: bool) -> None:
    assert (twilio.secret_of(header, "AC1") is not None) is ok


def test_message_id_comes_from_the_status_callback() -> None:
    assert twilio.our_message_id(GOOD_SMS | {"StatusCallback": "http://x/cb?message_id=m1&a=b"}, {}) == "m1"
    assert twilio.our_message_id(GOOD_SMS, {}) is None


# ---------------------------------------------------------------- FCM


@pytest.mark.parametrize(
    "payload",
    [
        [],
        {},
        {"message": {}},
        {"message": {"token": "a", "topic": "b"}},
        {"message": {"token": 1}},
        {"message": {"token": "a", "data": {"n": 1}}},
        {"message": {"token": "a", "data": {"google.x": "1"}}},
        {"message": {"token": "a", "data": {"n": "x" * 5000}}},
    ],
)
def test_message_fcm_would_refuse_is_an_invalid_argument(payload: object) -> None:
    refused = fcm.check_message(payload)
    assert isinstance(refused, web.Response)
    body = as_json(refused)["error"]
    assert (body["code"], body["status"]) == (400, "INVALID_ARGUMENT")
    assert body["details"][0]["@type"].endswith("BadRequest")


@pytest.mark.parametrize(
    ("response", "status", "code"),
    [
        (fcm.FcmErrors().rejected("t"), 404, "UNREGISTERED"),
        (fcm.FcmErrors().throttled("60"), 429, "QUOTA_EXCEEDED"),
        (fcm.FcmErrors().failed(None), 500, "INTERNAL"),
        (fcm.FcmErrors().failed("60"), 503, "UNAVAILABLE"),
    ],
)
def test_fcm_error_carries_its_error_code(response: web.Response, status: int, code: str) -> None:
    assert response.status == status
    assert as_json(response)["error"]["details"][0]["errorCode"] == code


def test_credentials_keep_their_key_and_stay_private(tmp_path: Path) -> None:
    path = tmp_path / "fcm-credentials.json"
    first = fcm.Credentials.load_or_create(path, "http://127.0.0.1:1/token")
    written = json.loads(path.read_text())
    second = fcm.Credentials.load_or_create(path, "http://127.0.0.1:2/token")
    rewritten = json.loads(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert written["project_id"] == "simulator"
    assert rewritten == written | {"token_uri": "http://127.0.0.1:2/token", "auth_uri": "http://127.0.0.1:2/token"}
    assert second.is_access_token(first.access_token(1000), 1001)


def test_access_token_expires_and_cannot_be_made_up(tmp_path: Path) -> None:
    credentials = fcm.Credentials.load_or_create(tmp_path / "c.json", "http://127.0.0.1:1/token")
    token = credentials.access_token(1000)
    assert credentials.is_access_token(token, 1001)
    assert not credentials.is_access_token(token, 10_000)
    assert not credentials.is_access_token(token.replace("ya29.4", "ya29.9"), 1001)
    assert not credentials.is_access_token("", 1001)


def test_assertion_that_is_no_jwt_is_refused(tmp_path: Path) -> None:
    credentials = fcm.Credentials.load_or_create(tmp_path / "c.json", "http://127.0.0.1:1/token")
    assert not credentials.is_assertion("a.b.c", 0)
    assert not credentials.is_assertion("", 0)


def test_file_that_is_no_service_account_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("{}")
    with pytest.raises(fcm.CredentialsError):
        fcm.Credentials.load_or_create(path, "http://127.0.0.1:1/token")
