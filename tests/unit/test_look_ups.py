"""What a vendor's answer to a look-up says of a message: that it has it, that it refused it, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.accounts import account
from vendors.bulksms.sender import user_supplied_id
from vendors.http import HttpResponse
from vendors.registry import VENDORS, create_look_ups
from vendors.sender import Doubt, ErrorClass, Rejected, Sent

KINDS = [vendor.kind for vendor in VENDORS if vendor.can_look_up]
MESSAGE_ID = "6f1c3a52-7e0b-5d0f-9d3a-0f6d7f0c1a2b"
SINCE = 1_800_000_000_000
DOUBT = Doubt(MESSAGE_ID, SINCE, "+4915112345678", "Your order is on its way")
OURS = user_supplied_id(MESSAGE_ID)


def asked(kind: str, folder: Path, **changed: Any) -> Any:
    provider = account(kind, folder, **changed)
    return create_look_ups([provider])[provider.name]


def answer(value: Any) -> HttpResponse:
    return HttpResponse(200, {}, json.dumps(value).encode())


def bulksms(state: str, theirs: str = "1", ours: str | None = OURS) -> dict[str, Any]:
    return {"id": theirs, "userSuppliedId": ours, "status": {"id": state, "type": state.partition(".")[0]}}


def twilio(sid: str = "SM1", **changed: Any) -> dict[str, Any]:
    made = {
        "to": DOUBT.address,
        "from": "+15005550006",
        "body": DOUBT.text,
        "date_created": "Fri, 15 Jan 2027 08:00:01 +0000",
    }
    return {"sid": sid, **made, **changed}


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], None),
        ([bulksms("ACCEPTED.null")], Sent("1")),
        ([bulksms("DELIVERED.null")], Sent("1")),
        ([bulksms("FAILED.EXPIRED")], None),
        ([bulksms("A_NEW.WORD")], None),
        ([bulksms("FAILED.EXPIRED"), bulksms("SENT.null", "2")], Sent("2")),
        ([bulksms("FAILED.BLOCKED")], Rejected(ErrorClass.PERMANENT_RECIPIENT, "200 FAILED.BLOCKED", opted_out=True)),
        ([bulksms("FAILED.BLOCKED"), bulksms("SENT.null", "2")], Sent("2")),
        ([bulksms("SENT.null", ours="another")], None),
        ([bulksms("SENT.null", ours=None)], None),
        ({"id": "1"}, None),
        ("text", None),
    ],
)
def test_what_bulksms_shows(messages: Any, says: object, tmp_path: Path) -> None:
    assert asked("bulksms", tmp_path).read_look_up(answer(messages), DOUBT) == says


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([twilio()], Sent("SM1")),
        ([twilio(), twilio("SM2")], None),
        ([twilio(body="another")], None),
        ([twilio(to="+4915100000000")], None),
        ([twilio(**{"from": "+15005550000"})], None),
        ([twilio(date_created="Fri, 15 Jan 2027 07:59:30 +0000")], None),
        ([twilio(date_created="Fri, 15 Jan 2027 09:00:00 +0000")], None),
        ([twilio(date_created="no time")], None),
        ([twilio(date_created=None)], None),
        ([twilio(), twilio("SM2", body="another")], Sent("SM1")),
        ([], None),
    ],
)
def test_what_twilio_shows(messages: Any, says: object, tmp_path: Path) -> None:
    assert (
        asked("twilio", tmp_path, **{"from": "+15005550006"}).read_look_up(answer({"messages": messages}), DOUBT)
        == says
    )


def test_twilio_is_not_asked_without_address_and_text(tmp_path: Path) -> None:
    assert asked("twilio", tmp_path).look_up_request(Doubt(MESSAGE_ID, SINCE)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_look_up_is_a_get_of_our_id_or_our_recipient_alone(kind: str, tmp_path: Path) -> None:
    request = asked(kind, tmp_path).look_up_request(DOUBT)
    assert request.body is None
    query = parse_qs(urlsplit(str(request.url)).query)
    [[told]] = [values for name, values in query.items() if name in ("filter", "message-id", "query", "To")]
    assert any(word in told for word in (MESSAGE_ID, OURS, DOUBT.address or ""))
    assert (DOUBT.text or "") not in str(request.url)


_WORDS = [
    "messages",
    "items",
    "id",
    "sid",
    "msg_id",
    "status",
    "user-variables",
    "message",
    "headers",
    "userSuppliedId",
]
_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from([OURS, MESSAGE_ID, "FAILED.BLOCKED"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_makes_a_reader_raise(kind: str, tmp_path: Path) -> None:
    sender = asked(kind, tmp_path)

    @settings(max_examples=100, deadline=None)
    @given(_ANY)
    def reads(value: Any) -> None:
        sender.read_look_up(answer(value), DOUBT)

    reads()
