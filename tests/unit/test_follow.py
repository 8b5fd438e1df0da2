"""`heliograph watch` and `status --follow` over the API's own events, in whatever pieces they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.commands.status import _follow
from console.commands.watch import facts
from runtime.errors import UnavailableError
from runtime.http.client import ApiClient, ApiResponse, LiveEvent, _Events


def fact(number: int, state: str, reason: str | None = None) -> dict[str, Any]:
    return {
        "id": f"e{number}",
        "channel": "sms",
        "state": state,
        "reason": reason,
        "provider": "p",
        "occurred_at": f"2027-01-15T08:00:00.00{number}Z",
    }


FACTS = [fact(0, "retrying", "throttled"), fact(1, "sent")]
NOTIFICATION = {"id": "x", "status": "sent", "reason": None}
SENT = [
    LiveEvent("snapshot", "1-a", {"notification": NOTIFICATION, "events": FACTS[:1], "complete": True}),
    LiveEvent("status", "1-b", {"event": FACTS[1], "notification": NOTIFICATION, "settled": True}),
    # After a lost connection it is told again.
    LiveEvent("snapshot", "1-c", {"notification": NOTIFICATION, "events": FACTS, "complete": True}),
    LiveEvent("end", "end", {"reason": "settled"}),
]


def streams(monkeypatch: pytest.MonkeyPatch, sent: list[LiveEvent]) -> None:
    async def events(_self: ApiClient, _path: str) -> AsyncIterator[LiveEvent]:
        for one in sent:
            yield one

    monkeypatch.setattr(ApiClient, "events", events)


async def test_every_event_is_printed_once_until_the_notification_settles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def call(_self: ApiClient, _method: str, _path: str) -> ApiResponse:
        return ApiResponse(200, NOTIFICATION)

    monkeypatch.setattr(ApiClient, "call", call)
    streams(monkeypatch, SENT)
    assert await _follow(ApiClient("http://a", "k"), "x", False) == NOTIFICATION
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["sms retrying (throttled) via p", "sms sent via p"]


async def test_notification_that_turns_out_unknown_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    streams(monkeypatch, [LiveEvent("end", "end", {"reason": "not_found"})])
    with pytest.raises(UnavailableError, match="no such notification"):
        [one async for one in facts(ApiClient("http://a", "k"), "/v1/stream")]


async def test_what_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    streams(monkeypatch, [LiveEvent("gap", None, {"missed": 3}), LiveEvent("reset", "1-a", {"reason": "too_old"})])
    assert [one async for one in facts(ApiClient("http://a", "k"), "/v1/stream")] == []
    assert "3 facts" in (said := capsys.readouterr().err)
    assert "lost for too long" in said


@given(st.integers(1, 40))
def test_events_are_the_same_in_whatever_pieces_they_come(size: int) -> None:
    raw = b"retry: 2417\n\n:\n\nid: 1-0\n\n" + b"".join(
        f"event: {one.kind}\nid: {one.id}\ndata: {json.dumps(one.data)}\n\n".encode() for one in SENT
    )
    parser = _Events(1 << 20)
    found = [event for at in range(0, len(raw), size) for event in parser.feed(raw[at : at + size])]
    assert found == [LiveEvent("", "1-0", None), *SENT]


def test_event_without_an_end_is_refused_and_not_kept() -> None:
    parser = _Events(1_000)
    with pytest.raises(UnavailableError, match="larger"):
        for _ in range(100):
            list(parser.feed(b"x" * 100))
