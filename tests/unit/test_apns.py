"""APNs: its table row by row, payload, headers, provider token; HTTP/2's "was it sent?" against a peer in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from pydantic_core import from_json, to_json

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from schemas.events import ChannelMessage
from tests.support.made import NOW, message
from vendors.apns.sender import (
    MESSAGE_ID_KEY,
    ApnsSender,
    ProviderToken,
    apns_rule,
    build_headers,
    build_request,
    encode_payload,
)
from vendors.http import HttpResponse, NotSentError, ResponseLostError
from vendors.http2 import Exchange, Http2Protocol
from vendors.provider import UnsendableError
from vendors.registry import create_senders
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

RCPT, MSG, THR, TRN, DOUBT, ACCT = (
    ErrorClass.PERMANENT_RECIPIENT,
    ErrorClass.PERMANENT_MESSAGE,
    ErrorClass.THROTTLED,
    ErrorClass.TRANSIENT,
    ErrorClass.IN_DOUBT,
    ErrorClass.ACCOUNT,
)
MESSAGE_ID = message()["message_id"]
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (410, "Unregistered", RCPT),
        (410, "ExpiredToken", RCPT),
        (410, None, RCPT),
        (400, "BadDeviceToken", RCPT),
        (403, "ExpiredProviderToken", ACCT),
        (403, "InvalidProviderToken", ACCT),
        (403, "MissingProviderToken", ACCT),
        (403, "Forbidden", ACCT),
        (403, "BadCertificate", ACCT),
        (403, "BadEnvironmentKeyIdInToken", ACCT),
        (401, None, ACCT),
        (400, "DeviceTokenNotForTopic", ACCT),
        (400, "TopicDisallowed", ACCT),
        (429, "TooManyRequests", THR),
        (429, "TooManyProviderTokenUpdates", THR),
        (429, None, THR),
        (503, "ServiceUnavailable", DOUBT),
        (503, "Shutdown", DOUBT),
        (400, "IdleTimeout", TRN),
        (413, "PayloadTooLarge", MSG),
        (404, "BadPath", MSG),
        (405, "MethodNotAllowed", MSG),
        (400, "BadTopic", MSG),
        (400, "BadCollapseId", MSG),
        (400, "BadExpirationDate", MSG),
        (400, "InvalidPushType", MSG),
        (400, None, None),
        (400, "NewReason", None),
        (500, "InternalServerError", DOUBT),
        (502, None, DOUBT),
        (302, None, None),
        (0, None, None),
        (500, "NewReason", None),
    ],
)
def test_apns_answer(status: int, reason: str | None, expected: ErrorClass | None) -> None:
    found = apns_rule(status, reason)
    assert (found.error if found else None) is expected


def encoded(made: ChannelMessage) -> bytes:
    """The body of a push."""
    return encode_payload(build_request(made, "t"))


def headers_of(made: ChannelMessage, topic: str = "t") -> dict[str, str]:
    """The headers of a push, each once."""
    headers = build_headers(build_request(made, topic), made["expires_at"])
    assert len(dict(headers)) == len(headers)
    return dict(headers)


def test_payload_has_the_alert_the_data_and_our_id() -> None:
    made = encoded(message(channel="push", title="T", body="B", data=to_json({"a": "1", "n": {"x": 2}})))
    alert = {"alert": {"title": "T", "body": "B"}}
    assert from_json(made) == {"a": "1", "n": {"x": 2}, "aps": alert, MESSAGE_ID_KEY: MESSAGE_ID}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": b'{"aps": {}}'}, "Apple's"),
        ({"data": b"[1]"}, "not a JSON object"),
        ({"data": b"secret"}, "^data is not JSON$"),
        ({"body": "x" * 4096}, "APNs takes 4096"),
    ],
)
def test_payload_that_apns_would_refuse_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsendableError, match=words):
        encoded(message(channel="push", **fields))


def test_headers_name_the_message_and_an_absolute_end() -> None:
    headers = headers_of(message(channel="push", title="T", expires_at=NOW + 5_000), "com.example.app")
    assert headers["apns-id"] == headers["apns-collapse-id"] == MESSAGE_ID
    assert len(headers["apns-collapse-id"]) <= 64
    assert headers["apns-expiration"] == str(NOW // 1000 + 5)
    assert (headers["apns-topic"], headers["apns-push-type"], headers["apns-priority"]) == (
        "com.example.app",
        "alert",
        "10",
    )


def test_push_without_title_and_body_is_a_background_push() -> None:
    silent = message(channel="push", title=None, body=None, data=to_json({"sync": "inbox"}))
    assert from_json(encoded(silent)) == {"sync": "inbox", "aps": {"content-available": 1}, MESSAGE_ID_KEY: MESSAGE_ID}
    headers = headers_of({**silent, "lane": "critical"})
    assert (headers["apns-push-type"], headers["apns-priority"]) == ("background", "5")


def test_bulk_lets_the_device_choose_the_moment() -> None:
    headers = headers_of(message(channel="push", lane="bulk"))
    assert headers["apns-priority"] == "5"
    assert "apns-expiration" not in headers


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


def test_provider_token_is_signed_by_es256_and_renewed_before_an_hour() -> None:
    clock = Clock()
    token = ProviderToken(KEY, "KEY", "TEAM", clock)
    first = token.get()
    assert jwt.get_unverified_header(first) == {"alg": "ES256", "kid": "KEY", "typ": "JWT"}
    claims = jwt.decode(first, KEY.public_key(), algorithms=["ES256"], options={"verify_iat": False})
    assert claims == {"iss": "TEAM", "iat": NOW // 1000}
    clock.now += 44 * 60_000
    assert token.get() == first
    clock.now += 2 * 60_000
    assert token.get() != first


def test_expired_provider_token_is_signed_anew_once() -> None:
    clock = Clock()
    token = ProviderToken(KEY, "KEY", "TEAM", clock)
    first = token.get()
    clock.now += 1_000
    assert token.expired(first)
    second = token.get()
    assert second != first
    assert token.expired(first)  # an answer to a push that was on its way
    assert not token.expired(second)  # so soon it is our clock: Apple counts new tokens
    assert token.get() == second


# -- HTTP/2, a peer in memory -----------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """What the client writes is read by the peer at once."""

    def __init__(self, peer: H2Connection) -> None:
        super().__init__()
        self.peer, self.closed, self.events = peer, False, list[Any]()

    def write(self, data: Any) -> None:
        self.events += self.peer.receive_data(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class Line:
    """A client's protocol and its peer."""

    def __init__(self, max_streams: int = 100, window: int | None = None) -> None:
        self.peer = H2Connection(H2Configuration(client_side=False))
        self.client = Http2Protocol()
        self.wire = Wire(self.peer)
        self.peer.initiate_connection()
        settings: dict[SettingCodes | int, int] = {SettingCodes.MAX_CONCURRENT_STREAMS: max_streams}
        if window is not None:
            settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
        self.peer.update_settings(settings)
        self.client.connection_made(self.wire)
        self.pump()

    def pump(self) -> None:
        """The peer's bytes reach the client, in odd pieces."""
        data = self.peer.data_to_send()
        for start in range(0, len(data), 7):
            self.client.data_received(data[start : start + 7])

    def ask(self, body: bytes = b"{}") -> tuple[int, Exchange]:
        headers = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/3/device/t")]
        return self.client.request(headers, body)

    def answer(self, stream_id: int, status: int, body: bytes = b"") -> None:
        self.peer.send_headers(stream_id, [(":status", str(status)), ("apns-id", "x")])
        self.peer.send_data(stream_id, body, end_stream=True)
        self.pump()

    def goaway(self, last_stream_id: int) -> None:
        payload = last_stream_id.to_bytes(4, "big") + bytes(4) + b'{"reason":"Shutdown"}'
        self.client.data_received(len(payload).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + payload)


async def test_answer_with_an_empty_data_frame_is_read() -> None:
    line = Line()
    stream_id, exchange = line.ask()
    line.answer(stream_id, 200)
    answer = await exchange.answered
    assert (answer.status, answer.headers["apns-id"], answer.body) == (200, "x", b"")


async def test_goaway_sends_back_only_the_streams_above_its_last() -> None:
    line = Line()
    (first, kept), (_, refused) = line.ask(), line.ask()
    line.goaway(first)
    with pytest.raises(NotSentError, match="GOAWAY"):
        await refused.answered
    assert not line.client.usable
    assert not line.wire.closed
    line.answer(first, 200)
    assert (await kept.answered).status == 200
    assert line.wire.closed


async def test_no_request_goes_out_after_a_goaway() -> None:
    line = Line()
    line.goaway(0)
    with pytest.raises(NotSentError):
        await line.client.slot()


async def test_connection_lost_after_the_request_was_written_is_a_doubt() -> None:
    line = Line()
    _, exchange = line.ask()
    line.client.connection_lost(ConnectionResetError())
    with pytest.raises(ResponseLostError, match="ConnectionResetError"):
        await exchange.answered


async def test_connection_lost_before_the_body_was_written_is_not_sent() -> None:
    line = Line(window=10)
    _, exchange = line.ask(b"x" * 11)
    line.client.connection_lost(None)
    with pytest.raises(NotSentError):
        await exchange.answered


async def test_body_goes_on_when_the_window_opens() -> None:
    line = Line(window=10)
    stream_id, exchange = line.ask(b"x" * 25)
    assert exchange.unsent == b"x" * 15
    line.peer.increment_flow_control_window(100, stream_id)
    line.pump()
    assert exchange.unsent == b""
    line.answer(stream_id, 200)
    assert (await exchange.answered).status == 200


@pytest.mark.parametrize(
    ("code", "expected"), [(ErrorCodes.REFUSED_STREAM, NotSentError), (ErrorCodes.INTERNAL_ERROR, ResponseLostError)]
)
async def test_reset_stream_is_not_sent_only_when_refused(code: ErrorCodes, expected: type[Exception]) -> None:
    line = Line()
    stream_id, exchange = line.ask()
    line.peer.reset_stream(stream_id, code)
    line.pump()
    with pytest.raises(expected, match=code.name):
        await exchange.answered


async def test_requests_wait_for_a_stream_of_the_peer() -> None:
    line = Line(max_streams=1)
    await line.client.slot()
    stream_id, _ = line.ask()
    waiting = asyncio.create_task(line.client.slot())
    await asyncio.sleep(0)
    assert not waiting.done()
    line.answer(stream_id, 200)
    await asyncio.wait_for(waiting, 1)


async def test_connection_that_says_nothing_after_a_timeout_is_retired() -> None:
    line = Line()
    stream_id, exchange = line.ask()
    exchange.written_at = line.client.last_received + 1
    line.client.abandon(stream_id)
    assert not line.client.usable
    assert exchange.answered.cancel()


async def test_bytes_that_are_no_http2_end_the_connection() -> None:
    line = Line()
    _, exchange = line.ask()
    line.client.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ResponseLostError):
        await exchange.answered
    assert line.wire.closed


# -- the sender -------------------------------------------------------------------------------------------------------


def provider(tmp_path: Path, **fields: Any) -> ProviderSettings:
    file = tmp_path / "key.p8"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(KEY.private_bytes(*form))
    keys = {"key_file": str(file), "key_id": "KEY", "team_id": "TEAM", "topic": "com.example.app", **fields}
    return ProviderSettings(name="p", channel="push", kind="apns", **keys)


class Canned:
    """A transport with one answer."""

    def __init__(self, answer: HttpResponse | Exception) -> None:
        self.answer = answer
        self.paths: list[str] = []

    async def post(self, path: str, **_: Any) -> HttpResponse:
        self.paths.append(path)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def result(tmp_path: Path, answer: HttpResponse | Exception, **fields: Any) -> tuple[SendResult, list[str]]:
    (sender,) = create_senders("push", [provider(tmp_path)])
    assert isinstance(sender, ApnsSender)
    canned = Canned(answer)
    sender._http = canned
    sent: Coroutine[Any, Any, SendResult] = sender.send(message(channel="push", **{"address": "ab", **fields}))
    return asyncio.run(sent), canned.paths


def said(status: int, reason: str, headers: dict[str, str] | None = None, **more: Any) -> HttpResponse:
    return HttpResponse(status, headers or {}, to_json({"reason": reason, **more}))


def test_accepted_push_is_sent(tmp_path: Path) -> None:
    assert result(tmp_path, HttpResponse(200, {"apns-id": "X"}, b"")) == (Sent("X"), ["/3/device/ab"])


def test_token_cannot_leave_its_part_of_the_path(tmp_path: Path) -> None:
    assert result(tmp_path, HttpResponse(200, {}, b""), address="../x?y")[1] == ["/3/device/..%2Fx%3Fy"]


def test_unregistered_says_since_when(tmp_path: Path) -> None:
    made, _ = result(tmp_path, said(410, "Unregistered", timestamp=NOW))
    assert made == Rejected(RCPT, "410 Unregistered since 2027-01-15T08:00:00.000Z", invalid_since=NOW)


def test_retry_after_is_passed_on(tmp_path: Path) -> None:
    answer = said(429, "TooManyRequests", {"retry-after": "7"})
    assert result(tmp_path, answer)[0] == Retry(THR, "429 TooManyRequests", 7.0)


def test_only_one_device_is_asked_too_often(tmp_path: Path) -> None:
    for reason, account_wide in (("TooManyRequests", False), ("TooManyProviderTokenUpdates", True)):
        made, _ = result(tmp_path, said(429, reason))
        assert isinstance(made, Retry)
        assert (made.error, made.account_wide) == (THR, account_wide)


def test_expired_provider_token_is_left_to_the_next_claim_and_then_to_the_account(tmp_path: Path) -> None:
    (sender,) = create_senders("push", [provider(tmp_path)])
    assert isinstance(sender, ApnsSender)
    canned = Canned(said(403, "ExpiredProviderToken"))
    sender._http = canned
    results = [asyncio.run(sender.send(message(channel="push", address="ab"))) for _ in range(2)]
    assert results == [Retry(TRN, "403 ExpiredProviderToken"), Retry(ACCT, "403 ExpiredProviderToken")]
    assert len(canned.paths) == 2  # one request for each


@pytest.mark.parametrize(
    ("failure", "expected"), [(NotSentError("x"), Retry(TRN, "x")), (ResponseLostError("x"), InDoubt("x"))]
)
def test_lost_request_is_a_retry_and_a_lost_answer_a_doubt(
    tmp_path: Path, failure: Exception, expected: SendResult
) -> None:
    made, paths = result(tmp_path, failure)
    assert made == expected
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key_file": "/does/not/exist"}, "is not Apple's .p8 file"),
        ({"team_id": None}, "team_id"),
        ({"base_url": "http://example.org"}, "plain http only to this machine"),
    ],
)
def test_wrong_apns_settings_say_what_is_wrong(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        create_senders("push", [provider(tmp_path, **fields)])
