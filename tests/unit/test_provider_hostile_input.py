"""Whatever a message or a provider's answer holds, every provider's sender ends in a result that can be recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.settings import ProviderSettings
from schemas.channels import CHANNELS
from schemas.events import ChannelMessage
from senders.outcomes import Attempt, from_result
from tests.support.accounts import HTTP_KINDS, KINDS, account, sender_of, to_send
from tests.support.made import NOW, RECORD, message
from vendors.fcm.sender import FcmSender
from vendors.hook_account import HookAccount, Pauses
from vendors.http import HttpResponse
from vendors.provider import MAX_CODE, MAX_PROVIDER_ID, ProviderAccount, UnsendableError, bounded
from vendors.sender import ErrorClass, InDoubt, ProbeRefusal, Rejected, SendResult, Sent

ASKED = [*HTTP_KINDS, "apns"]
"""Kinds whose transport can be replaced by one with a canned answer."""


class Canned:
    """A transport with one answer; counts what it was asked."""

    def __init__(self, answer: HttpResponse) -> None:
        self.answer, self.asked = answer, 0

    async def post(self, *_: Any, **__: Any) -> HttpResponse:
        self.asked += 1
        return self.answer


@pytest.fixture(scope="module")
def senders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One sender of every kind there is."""
    folder = tmp_path_factory.mktemp("keys")
    return {kind: sender_of(account(kind, folder)) for kind in KINDS}


def through(sender: Any, answer: HttpResponse) -> Canned:
    """The sender's transport is replaced by one that always answers this."""
    transport = Canned(answer)
    sender._http = transport
    if isinstance(sender, HookAccount):
        sender._pauses = Pauses()
    if isinstance(sender, FcmSender):
        sender._token._valid_until = 1 << 60  # as if it had an access token
    return transport


def recordable(made: SendResult) -> None:
    """What is recorded of a result can be encoded, whatever the channel."""
    for channel in CHANNELS:
        from_result(Attempt(message(channel=channel), RECORD, NOW, "p", 1), made, jitter=0.5, max_retries=5)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS: tuple[str, ...] = (
    "sid",
    "code",
    "name",
    "error",
    "details",
    "errorCode",
    "reason",
    "timestamp",
    "status",
    "message",
    "@type",
)
_FIELDS += ("errors", "field", "id", "messages", "message-count", "message-id", "error-text", "type", "MessageId")


def _dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


_BODIES = (
    st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=5).map(_dumps)
    | _JSON.map(_dumps)
    | st.binary(max_size=50)
    | st.sampled_from(
        [
            b"",
            b"[" * 5_000,
            b'{"sid": ' + b"9" * 5_000 + b"}",
            b'{"name": "' + b"x" * 5_000 + b'"}',
            b'{"sid": "a\\u0000b"}',
            b'{"sid": {"a": 1}}',
            b'{"error": {"details": [[], null, {"errorCode": []}]}}',
            b'{"reason": "\\u0000"}',
            b'{"code": -1}',
            b"\xff\xfe",
        ]
    )
)
_HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "apns-id", "x-message-id", "x-ratelimit-reset", "x-amzn-errortype"]),
    st.text(max_size=40)
    | st.sampled_from(["99999999999999999999", "-1", "Sun, 31 Dec 9999 23:59:59 -2359", "\0", "nan"]),
)
_ANSWERS = st.builds(
    HttpResponse,
    st.integers(-1, 1_000) | st.sampled_from([0, 200, 201, 202, 400, 403, 404, 410, 429, 500]),
    _HEADERS,
    _BODIES,
)


@pytest.mark.parametrize("kind", ASKED)
@given(answer=_ANSWERS)
async def test_any_answer_ends_in_a_result_that_can_be_recorded(
    senders: dict[str, Any], kind: str, answer: HttpResponse
) -> None:
    transport = through(senders[kind], answer)
    made = await senders[kind].send(to_send(kind))
    assert transport.asked == 1
    recordable(made)


_TEXTS = (
    st.none()
    | st.text(max_size=50)
    | st.sampled_from(["", "\0", "a\r\nBcc: x@y.z", "\u202e", "x" * 70_000, "=?utf-8?q?a?="])
)
_HOSTILE: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "address": st.text(max_size=50) | st.sampled_from(["", "\0", "a@b.c\r\nRCPT TO:<x@y.z>", "../../x", "x" * 300]),
        "subject": _TEXTS,
        "text": _TEXTS,
        "html": _TEXTS,
        "title": _TEXTS,
        "body": _TEXTS,
        "data": st.none()
        | st.binary(max_size=20)
        | st.sampled_from(
            [b"[1]", b'"x"', b"1", b"null", b'{"aps": 1}', b'{"": {}}', b"[" * 5_000, b'{"a": ' + b"9" * 5_000 + b"}"]
        ),
        "expires_at": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        "platform": st.none() | st.text(max_size=5),
        "lane": st.sampled_from(["critical", "normal", "bulk"]),
        "message_id": st.text(max_size=50),
        "notification_id": st.text(max_size=50),
        "tenant": st.text(max_size=50),
        "overrides": st.none() | st.binary(max_size=20),
    },
)


@pytest.mark.parametrize("kind", ASKED)
@given(fields=_HOSTILE)
async def test_any_message_costs_at_most_one_request(
    senders: dict[str, Any], kind: str, fields: dict[str, Any]
) -> None:
    transport = through(senders[kind], HttpResponse(200, {}, b'{"name": "n", "sid": "s"}'))
    made = await senders[kind].send(to_send(kind, **fields))
    assert transport.asked == (0 if isinstance(made, Rejected) else 1), made
    recordable(made)


@given(fields=_HOSTILE)
def test_any_message_is_a_mail_or_cannot_be_sent(senders: dict[str, Any], fields: dict[str, Any]) -> None:
    try:
        envelope = senders["smtp"].prepare(message(**fields))
    except UnsendableError as exc:
        recordable(bounded(Rejected(ErrorClass.PERMANENT_MESSAGE, str(exc))))
    else:
        assert envelope.mail.count(b"\r\nTo: ") == 1


@pytest.mark.parametrize("data", [b"[1]", b'"x"', b"null", b"1", b"{", b"\xff"])
@pytest.mark.parametrize("kind", ["fcm", "apns"])
async def test_push_data_that_is_no_object_is_rejected(senders: dict[str, Any], kind: str, data: bytes) -> None:
    transport = through(senders[kind], HttpResponse(200, {}, b"{}"))
    made = await senders[kind].send(message(channel="push", address="tok", title="T", data=data))
    assert isinstance(made, Rejected)
    assert "data is not" in made.code
    assert transport.asked == 0


# -- errors that no provider's module knows ---------------------------------------------------------------------------


class Broken(ProviderAccount[str]):
    """A sender with a fault of its own."""

    channel = "sms"

    def __init__(self, when: str) -> None:
        super().__init__(ProviderSettings(name="b", channel="sms", kind="twilio"))
        self.when = when

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def prepare(self, message: ChannelMessage) -> str:
        if self.when == "prepare":
            raise KeyError("a fault")
        return message["address"]

    async def deliver(self, prepared: str) -> SendResult:
        raise KeyError("a fault")

    async def probe(self) -> ProbeRefusal | None: ...


async def test_unknown_error_before_the_request_rejects_and_after_it_is_in_doubt() -> None:
    before, after = [await Broken(when).send(message(channel="sms")) for when in ("prepare", "deliver")]
    assert isinstance(before, Rejected)
    assert before.error is ErrorClass.PERMANENT_MESSAGE
    assert isinstance(after, InDoubt)


@given(st.none() | st.text() | st.integers() | st.dictionaries(st.text(), st.text()))
def test_provider_message_id_is_short_printable_ascii_or_none(given_id: Any) -> None:
    made = bounded(Sent(given_id))
    assert isinstance(made, Sent)
    kept = made.provider_message_id
    assert kept is None or (kept == given_id and len(kept) <= MAX_PROVIDER_ID and kept.isascii() and kept.isprintable())
    assert bounded(Sent("projects/p/messages/0:1%2")) == Sent("projects/p/messages/0:1%2")


def test_code_is_cut() -> None:
    made = bounded(InDoubt("x" * 10_000, 3.0))
    assert isinstance(made, InDoubt)
    assert (len(made.code), made.retry_after_s) == (MAX_CODE, 3.0)
