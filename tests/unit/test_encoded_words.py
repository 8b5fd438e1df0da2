"""An address is never an encoded word, whichever door it comes in by: `=?utf-8?q?x=40evil.example=3e?=@example.com`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.reference.suppressions import read_import
from processors.router.policy import may_send, target
from producers.checking import check_model
from producers.notification import Notification
from producers.publisher import Publication, _Requests
from producers.reference.inputs import NewSuppression, NewUser, ReplacedUser
from runtime.addresses import has_encoded_word
from runtime.errors import Refusal, RefusedError

_BODY = {"content": {"text": "x", "title": "t"}}
_ATOM = st.text("abcXYZ019!#$%&'*+/=?^_`{|}~-", max_size=8)
_WORD = st.builds(
    lambda charset, kind, text: f"=?{charset}?{kind}?{text}?=",
    st.sampled_from(["utf-8", "UTF-8*en", "iso-8859-1", "x"]),
    st.sampled_from(["q", "Q", "b", "B"]),
    st.sampled_from(["x=40evil.example=3e", "eEBldmlsLmV4YW1wbGU=", ""]),
)
LOCAL_PARTS = st.builds(lambda before, word, after: before + word + after, _ATOM, _WORD, _ATOM)


def refused_with(problem: RefusedError) -> str:
    return problem.errors[0].code if problem.errors else problem.code


def over_http(model: Any, body: Callable[[str], Any]) -> Callable[[str], bool]:
    def refuses(address: str) -> bool:
        try:
            check_model(model, body(address))
        except RefusedError as problem:
            return problem.kind is Refusal.INVALID and len(problem.errors) >= 1
        return False

    return refuses


def directly(address: str) -> bool:
    try:
        _Requests("t", "s", lambda: 1).record(Publication({"to": {"email": address}, **_BODY}))
    except ValueError:
        return True
    return False


def imported(kind: str, text: Callable[[str], str]) -> Callable[[str], bool]:
    def refuses(address: str) -> bool:
        read = read_import(text(address).encode(), kind)
        return not read.taken and len(read.refused) == 1

    return refuses


class Nothing:
    def get(self, key: str) -> None:
        return None


def routed(channel: str) -> Callable[[str], bool]:
    def refuses(address: str) -> bool:
        verdict = may_send("t", "normal", "c", None, target(channel, address), Nothing(), 1)
        return verdict is not None and (verdict.state, verdict.reason) == ("rejected", "invalid_address")

    return refuses


ENTRY_POINTS: dict[str, Callable[[str], bool]] = {
    "notification email": over_http(Notification, lambda a: {"to": {"email": a}, **_BODY}),
    "notification phone": over_http(Notification, lambda a: {"to": {"phone": a}, **_BODY}),
    "notification token": over_http(
        Notification, lambda a: {"to": {"device_tokens": [{"platform": "fcm", "token": a}]}, **_BODY}
    ),
    "user email": over_http(NewUser, lambda a: {"id": "u", "email": a}),
    "user phone": over_http(NewUser, lambda a: {"id": "u", "phone": a}),
    "user token": over_http(NewUser, lambda a: {"id": "u", "devices": [{"platform": "apns", "token": a}]}),
    "replaced or patched user": over_http(ReplacedUser, lambda a: {"email": a}),
    "suppressed email": over_http(NewSuppression, lambda a: {"channel": "email", "address": a}),
    "suppressed token": over_http(NewSuppression, lambda a: {"channel": "push", "address": a}),
    "imported line": imported("application/jsonl", lambda a: json.dumps({"channel": "email", "address": a})),
    "imported row": imported("text/csv", lambda a: f'channel,address\nemail,"{a}"\n'),
    "the publisher": directly,
    "routed email": routed("email"),
    "routed push": routed("push"),
    "routed sms": routed("sms"),
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@given(local=LOCAL_PARTS)
def test_no_door_takes_an_address_with_an_encoded_word(entry_point: str, local: str) -> None:
    assert ENTRY_POINTS[entry_point](f"{local}@example.com")


@pytest.mark.parametrize("address", ["a=b@example.com", "a?b@example.com", "who?=x@example.com", "a=?b@example.com"])
def test_address_with_the_signs_of_one_and_none_is_taken(address: str) -> None:
    assert not has_encoded_word(address)
    assert not ENTRY_POINTS["notification email"](address)
    assert not ENTRY_POINTS["routed email"](address)
