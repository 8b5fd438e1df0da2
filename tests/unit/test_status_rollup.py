"""The rollup of a notification, case by case, and what the API answers in its first moments."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI

from api.app import handlers
from api.notifications.status import status_router
from runtime import ids
from runtime.errors import UnavailableError
from schemas.events import states
from tracking import status
from tracking.status import Found, Statuses, rollup

NOW = 1_790_000_000_000
A, B = "aaaaaaaa-0000-5000-8000-000000000000", "bbbbbbbb-0000-5000-8000-000000000000"
_numbers = itertools.count(1)


def fact(message_id: str, state: str, reason: str = "", *, at: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "event_id": str(UUID(int=next(_numbers))),
        "message_id": message_id,
        "channel": "email" if message_id else "",
        "lane": "normal",
        "state": state,
        "rank": states().rank.get(state, -1),
        "reason": reason,
        "detail": "",
        "attempt": 0,
        "provider": "",
        "provider_message_id": "",
        "possible_duplicate": False,
        "template_id": "",
        "template_version": None,
        "preference_version": None,
        "occurred_at": NOW + at,
        "latency_ms": None,
        "correlation_id": "",
        **more,
    }


WHOLE = ""
CASES: list[tuple[str, list[dict[str, Any]], tuple[str, str | None]]] = [
    ("nothing known yet", [], ("accepted", None)),
    ("scheduled", [fact(WHOLE, "scheduled")], ("scheduled", None)),
    ("refused as a whole", [fact(WHOLE, "rejected", "unknown_template")], ("rejected", "unknown_template")),
    (
        "scheduled, then expired",
        [fact(WHOLE, "expired", "past_expiry"), fact(WHOLE, "scheduled", at=9)],
        ("expired", "past_expiry"),
    ),
    ("routed after scheduled", [fact(WHOLE, "scheduled"), fact(A, "routed")], ("routed", None)),
    (
        "a late fact about the whole does not undo a message",
        [fact(A, "sent"), fact(WHOLE, "expired", "past_expiry")],
        ("sent", None),
    ),
    ("least advanced of the unsettled", [fact(A, "sending"), fact(B, "routed")], ("routed", None)),
    ("one unsettled", [fact(A, "delivered"), fact(B, "sending")], ("sending", None)),
    ("best of the settled", [fact(A, "bounced", "hard_bounce"), fact(B, "delivered")], ("delivered", None)),
    ("sent is better than undelivered", [fact(A, "undelivered", "carrier"), fact(B, "sent")], ("sent", None)),
    ("common reason", [fact(A, "skipped", "opted_out"), fact(B, "skipped", "opted_out")], ("skipped", "opted_out")),
    ("different reasons", [fact(A, "skipped", "opted_out"), fact(B, "skipped", "no_address")], ("skipped", None)),
    (
        "different states",
        [fact(A, "suppressed", "suppressed_address"), fact(B, "bounced", "hard_bounce")],
        ("bounced", None),
    ),
    (
        "bounced after delivered",
        [fact(A, "bounced", "hard_bounce", at=5), fact(A, "delivered")],
        ("bounced", "hard_bounce"),
    ),
    (
        "delivered after bounced is older news",
        [fact(A, "delivered", at=5), fact(A, "bounced", "soft_bounce")],
        ("bounced", "soft_bounce"),
    ),
    ("corrected after unknown", [fact(A, "unknown", "in_doubt", at=9), fact(A, "sent")], ("sent", None)),
    (
        "re-driven after dead letter",
        [fact(A, "dead_lettered", "internal_error"), fact(A, "failed", "retries_exhausted")],
        ("failed", "retries_exhausted"),
    ),
    ("engagement is no state", [fact(A, "sent"), fact(A, "opened", at=9)], ("sent", None)),
    ("only a retry known", [fact(A, "retrying", attempt=1)], ("routed", None)),
    (
        "equal ranks: the later",
        [fact(A, "skipped", "opted_out", at=1), fact(A, "suppressed", "suppressed_address", at=2)],
        ("suppressed", "suppressed_address"),
    ),
]


@pytest.mark.parametrize(("events", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_status_and_reason(events: list[dict[str, Any]], expected: tuple[str, str | None]) -> None:
    for shuffled in itertools.permutations(events):
        answer = rollup("n", NOW, shuffled)
        assert (answer["status"], answer["reason"]) == expected


def test_attempts_tell_how_each_ended() -> None:
    events = [
        fact(A, "routed"),
        fact(A, "sending", attempt=1, possible_duplicate=True),
        fact(A, "retrying", at=10, attempt=1, provider="mail-1"),
        fact(A, "failed_over", at=10, attempt=2, provider="mail-2"),
        fact(A, "sent", at=20, attempt=2, provider="mail-2", provider_message_id="pm"),
        fact(A, "delivered", at=30, attempt=2),
        fact(A, "opened", at=40, attempt=2),
    ]
    (message,) = rollup("n", NOW, events)["messages"]
    assert [(a["attempt"], a["provider"], a["state"], a["occurred_at"]) for a in message["attempts"]] == [
        (1, "mail-1", "retrying", "2026-09-21T14:13:20.010Z"),
        (2, "mail-2", "delivered", "2026-09-21T14:13:20.030Z"),
    ]
    assert message["possible_duplicate"] is True
    assert (message["provider"], message["provider_message_id"], message["channel"]) == ("mail-2", "pm", "email")


def test_shape_is_the_contract() -> None:
    answer = rollup("n", NOW, [fact(A, "sent", attempt=1)])
    assert list(answer) == ["id", "status", "reason", "accepted_at", "messages", "links"]
    assert list(answer["messages"][0]) == [
        "id",
        "channel",
        "status",
        "reason",
        "provider",
        "provider_message_id",
        "possible_duplicate",
        "attempts",
    ]
    assert list(answer["messages"][0]["attempts"][0]) == ["attempt", "provider", "state", "reason", "occurred_at"]
    assert answer["accepted_at"] == "2026-09-21T14:13:20.000Z"


class FakeStore:
    """Has what it is given, after so many reads."""

    def __init__(self, found: Found | None = None, *, after: int = 0, away: bool = False) -> None:
        self.found, self.after, self.away, self.reads = found, after, away, 0

    async def read(self, tenant: str, notification_id: UUID) -> Found | None:
        self.reads += 1
        if self.away:
            raise UnavailableError("ClickHouse is away")
        return self.found if self.reads > self.after else None


class Someone:
    tenant = "mine"


def app(store: FakeStore, recent: Mapping[str, Mapping[str, Any]]) -> FastAPI:
    made = FastAPI(exception_handlers=handlers())
    made.include_router(status_router(Statuses(store, recent.get, lambda: NOW), lambda: Someone()))
    return made


async def ask(asgi: Any, path: str) -> tuple[int, Any, dict[str, str]]:
    """One GET, without a server."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "scheme": "http",
        "server": ("x", 80),
        "http_version": "1.1",
        "root_path": "",
    }
    await asgi(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:])), headers


YOUNG = ids.notification_id(NOW - 1_000, "mine")
OLD = ids.notification_id(NOW - 3_600_000, "mine")


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "POLL_S", 0.01)
    monkeypatch.setattr(status, "WAIT_S", 0.05)


def get(
    store: FakeStore, path: str, recent: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[int, Any, dict[str, str]]:
    return asyncio.run(ask(app(store, recent or {}), f"/v1/notifications/{path}"))


def test_known_notification_is_told() -> None:
    code, body, _ = get(FakeStore(Found(True, (fact(A, "sent"),))), OLD)
    assert (code, body["id"], body["status"]) == (200, OLD, "sent")


def test_events_are_listed() -> None:
    code, body, _ = get(FakeStore(Found(True, (fact(A, "sent", attempt=1),))), f"{OLD}/events")
    assert (code, body["next_cursor"], [entry["state"] for entry in body["entries"]]) == (200, None, ["sent"])


@pytest.mark.parametrize(
    "text",
    ["nope", "123", OLD.replace("-", ""), "{" + OLD + "}"],
    ids=["word", "number", "without hyphens", "in braces"],
)
def test_malformed_id_is_400(text: str) -> None:
    store = FakeStore()
    code, body, headers = get(store, text)
    assert (code, body["code"], store.reads) == (400, "invalid_id", 0)
    assert headers["content-type"] == "application/problem+json"


def test_id_of_another_version_is_404_without_a_query() -> None:
    store = FakeStore(Found(True))
    assert (get(store, str(uuid4()))[0], store.reads) == (404, 0)


def test_old_unknown_id_is_404_at_once() -> None:
    store = FakeStore()
    code, body, headers = get(store, OLD)
    assert (code, body["code"], store.reads) == (404, "not_found", 1)
    assert headers["content-type"] == "application/problem+json"


def test_young_unknown_id_is_404_after_the_wait() -> None:
    store = FakeStore()
    assert get(store, YOUNG)[0] == 404
    assert store.reads > 2


def test_young_id_of_another_process_is_waited_for() -> None:
    code, body, _ = get(FakeStore(Found(True), after=3), YOUNG)
    assert (code, body["status"], body["messages"]) == (200, "accepted", [])


def test_recently_accepted_here_is_readable_at_once() -> None:
    store = FakeStore()
    code, body, _ = get(store, YOUNG, {YOUNG: {"tenant": "mine"}})
    assert (code, body["status"], store.reads) == (200, "accepted", 1)
    assert get(FakeStore(), f"{YOUNG}/events", {YOUNG: {"tenant": "mine"}})[1]["entries"] == []


def test_recently_accepted_of_another_tenant_is_unknown_and_takes_as_long_as_what_nobody_has() -> None:
    theirs, nobodys = FakeStore(), FakeStore()
    assert get(theirs, YOUNG, {YOUNG: {"tenant": "theirs"}})[0] == 404
    assert get(nobodys, YOUNG)[0] == 404
    assert theirs.reads == nobodys.reads > 1


@pytest.mark.parametrize("nid", [OLD, YOUNG], ids=["old", "young"])
def test_store_away_is_503_also_for_what_was_accepted_a_moment_ago(nid: str) -> None:
    code, body, headers = get(FakeStore(away=True), nid, {nid: {"tenant": "mine"}})
    assert (code, body["code"]) == (503, "store_unavailable")
    assert int(headers["retry-after"]) >= 1


def test_accepted_here_a_while_ago_and_not_stored_is_503_and_not_accepted() -> None:
    code, body, _ = get(FakeStore(), OLD, {OLD: {"tenant": "mine"}})
    assert (code, body["code"]) == (503, "store_unavailable")
    assert "the sink is behind" in body["detail"]
