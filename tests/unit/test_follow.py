"""`heliograph status --follow` over the API's own shape of an event."""

from __future__ import annotations

from typing import Any

import pytest

from console.commands.status import _follow
from runtime.http.client import ApiClient, ApiResponse
from tracking.status import event_entry


async def test_every_event_is_printed_once_until_the_notification_settles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = [
        {
            "event_id": f"e{n}",
            "message_id": "m",
            "channel": "sms",
            "lane": "normal",
            "state": state,
            "reason": reason,
            "detail": None,
            "attempt": n,
            "provider": "p",
            "provider_message_id": None,
            "possible_duplicate": False,
            "template_id": None,
            "template_version": None,
            "preference_version": None,
            "occurred_at": 1_800_000_000_000 + n,
            "latency_ms": None,
            "correlation_id": None,
            "rank": n,
        }
        for n, (state, reason) in enumerate([("retrying", "throttled"), ("sent", None)])
    ]
    polls = iter([1, 2])
    body: dict[str, Any] = {"status": "routed"}

    async def call(_self: ApiClient, _method: str, path: str) -> ApiResponse:
        if not path.endswith("/events"):
            return ApiResponse(200, body)
        seen = next(polls)
        body["status"] = "sent" if seen == 2 else "routed"
        return ApiResponse(200, {"entries": [event_entry(fact) for fact in facts[:seen]]})

    monkeypatch.setattr(ApiClient, "call", call)
    monkeypatch.setattr("console.commands.status._POLL_S", 0)
    # The last look at the events comes after the state was seen, so nothing is missed.
    await _follow(ApiClient("http://a", "k"), "/v1/notifications/x", False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["sms retrying (throttled) via p", "sms sent via p"]
