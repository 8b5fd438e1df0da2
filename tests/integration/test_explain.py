"""Explaining and auditing on the real engine, and on the whole stack: the story stays what it was, whatever is changed later."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI, Request

from api.app import handlers
from api.notifications.explain import explain_router
from producers.publisher import Publisher
from runtime import ids
from runtime.kafka.producer import Producer
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import ClickHouseSettings, KafkaSettings
from schemas.codec import codec
from schemas.topics import DEAD_LETTERS, RECEIPTS, STATUS
from sinks.clickhouse import insert
from sinks.rows import DEAD_LETTERS_TABLE
from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until
from tests.integration.test_clickhouse_schema import HOUR, NOW, Store, notification, record, request, status
from tests.support.clickhouse import Server
from tests.unit.test_status_rollup import ask
from tracking.audit import audit_hours
from tracking.status import Statuses, StatusStore

pytestmark = [pytest.mark.clickhouse]
__all__ = ["running"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    server = Server(tmp_path_factory.mktemp("clickhouse") / "data").start()
    yield Store(server)
    assert server.stop() == 0


class Caller:
    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


def get(settings: ClickHouseSettings, nid: str, tenant: str = "t") -> tuple[int, Any]:
    def authenticate(request: Request) -> Caller:
        return Caller(tenant)

    store = StatusStore(settings)
    app = FastAPI(exception_handlers=handlers())
    app.include_router(explain_router(store, Statuses(store, lambda _: None), authenticate))
    code, body, _ = asyncio.run(ask(app, f"/v1/notifications/{nid}/explain"))
    return code, body


def receipt(provider_message_id: str, message_id: str | None, state: str, number: int) -> ConsumerRecord:
    value = {
        "event_id": str(uuid.UUID(int=number)),
        "provider": "sms-1",
        "provider_message_id": provider_message_id,
        "message_id": message_id,
        "state": state,
        "reason": "carrier" if state == "undelivered" else None,
        "code": "30008",
        "occurred_at": NOW,
        "received_at": NOW + 5,
        "raw": b"To=+491700000000",
    }
    return record(RECEIPTS, "ProviderReceipt", value)


def dead_letter(nid: str, tenant: str, message_id: str | None) -> ConsumerRecord:
    content = {
        "dead_letter_id": str(uuid.uuid4()),
        "topic": "notify.dispatch.sms.normal.v1",
        "partition": 2,
        "offset": 9,
        "key": b"canary",
        "value": b"canary",
        "headers": [],
        "stage": "sender",
        "reason": "retries_exhausted",
        "error_class": "RetriesExhausted",
        "detail": "30008",
        "attempts": 6,
        "tenant": tenant,
        "notification_id": nid,
        "message_id": message_id,
        "occurred_at": NOW,
    }
    return record(DEAD_LETTERS, "DeadLetter", content)


def test_story_has_everything_the_store_has(store: Store) -> None:
    nid = notification(HOUR)
    sms = ids.message_id(nid, "sms", "x")
    store.insert(
        [
            request(nid, source="shop", correlation_id="c-1", idempotency_key="k"),
            request(nid, source="http", correlation_id="c-2", generation=1),
            status(nid, "sms", "routed", after=20, preference_version=5, correlation_id="c-1"),
            status(nid, "sms", "retrying", attempt=1, after=200, provider="sms-1", detail="429", latency_ms=30),
            status(
                nid, "sms", "sent", attempt=2, after=1_500, provider="sms-1", provider_message_id="SM1", latency_ms=40
            ),
            status(nid, "push", "skipped", after=20, reason="no_address", correlation_id="c-1"),
            receipt("SM1", None, "undelivered", 1),
            receipt("SM1", str(uuid.uuid4()), "delivered", 2),  # says itself that it is another's
            receipt("SM2", None, "delivered", 3),
            dead_letter(nid, "t", sms),
            dead_letter(nid, "other", sms),
        ]
    )
    code, story = get(store.settings, nid)
    assert code == 200
    assert (story["acceptance"]["source"], story["acceptance"]["correlation_id"]) == ("shop", "c-1")
    assert story["acceptance"]["idempotency_key_given"]
    push, message = story["messages"]
    assert push["why"] == "skipped: there is no address for this channel"
    assert (message["template_version"], message["preference_version"]) == (3, 5)
    assert [attempt["provider"] for attempt in message["attempts"]] == ["sms-1", "sms-1"]
    assert message["attempts"][0]["next_after_ms"] == 1_260
    assert [one["state"] for one in message["receipts"]] == ["undelivered"]
    assert [one["message_id"] for one in story["dead_letters"]] == [sms]
    assert [one["generation"] for one in story["resends"]] == [1]
    assert "canary" not in json.dumps(story)
    assert "+4917" not in json.dumps(story)
    assert story["timeline"][0]["what"] == "accepted from shop in lane normal, for u1, correlation id c-1"


def test_replay_is_on_the_timeline_and_is_no_attempt(store: Store) -> None:
    nid = notification(HOUR)
    words = "replay 0198 by ops"
    store.insert(
        [
            request(nid),
            status(nid, "sms", "routed", after=20),
            status(nid, "sms", "failed", attempt=1, after=200, provider="sms-1", latency_ms=30),
            status(nid, None, "replayed", after=60_000, detail=words),
            status(nid, "sms", "replayed", after=60_010, detail=words),
            status(nid, "sms", "sent", attempt=2, after=61_000, provider="sms-1", latency_ms=40),
        ]
    )
    code, story = get(store.settings, nid)
    assert code == 200
    (message,) = story["messages"]
    assert [attempt["attempt"] for attempt in message["attempts"]] == [1, 2]
    assert (story["status"], message["status"]) == ("sent", "sent")
    reported = [(one["stage"], one["what"]) for one in story["timeline"]]
    again = ("operator", f"replayed: an operator had it published again ({words})")
    assert [stage for stage, _ in reported] == ["acceptance", "decision", "attempt", "operator", "operator", "attempt"]
    assert reported[3][1].startswith(again[1])
    assert reported[4][1].startswith(again[1])


def test_first_generation_is_the_acceptance_whichever_came_last_and_after_merges(store: Store) -> None:
    for first, second in ((0, 2), (2, 0)):
        nid = notification(HOUR)
        for generation in (first, 1, second):
            store.insert([request(nid, generation=generation, correlation_id=f"c-{generation}")])
        store.merge()
        _, story = get(store.settings, nid)
        assert story["acceptance"]["correlation_id"] == "c-0"
        assert [one["generation"] for one in story["resends"]] == [1, 2]


def test_another_tenant_unknown_and_malformed_ids_get_nothing(store: Store) -> None:
    nid = notification(HOUR)
    store.insert([request(nid), status(nid, "sms", "sent", attempt=1)])
    assert get(store.settings, nid, tenant="other")[0] == 404
    assert get(store.settings, notification(HOUR))[0] == 404
    assert get(store.settings, "nope")[0] == 400


def test_dead_letter_without_a_tenant_is_shown_to_no_tenant(store: Store) -> None:
    nid = notification(HOUR)
    store.insert([request(nid)])
    row = [
        b"x" * 16,
        "t",
        0,
        0,
        b"",
        b"",
        "router",
        "undecodable",
        "E",
        "",
        1,
        "",
        uuid.UUID(nid).bytes,
        bytes(16),
        NOW,
    ]
    insert(store.settings, store.client, "dead_letters_raw", DEAD_LETTERS_TABLE.columns, [[value] for value in row])
    assert get(store.settings, nid)[1]["dead_letters"] == []


# ---------------------------------------------------------------- audit


def test_audit_counts_by_hour_and_tenant_and_finds_strays(store: Store) -> None:
    store.clear()
    old, new, theirs = notification(30 * HOUR), notification(HOUR), notification(HOUR, "b")
    store.insert(
        [request(nid) for nid in (old, new)] + [request(theirs, "b"), status(theirs, "sms", "sent", tenant="b")]
    )
    store.insert([status(nid, "sms", "sent", attempt=1) for nid in (old, new)])
    day = NOW // 1000 - 24 * 3600
    found = audit_hours(store.settings, "", day, NOW // 1000)
    assert (found.adds_up, found.totals["accepted"], found.totals["sent"]) == (True, 2, 2)
    assert audit_hours(store.settings, "", 0, NOW // 1000).totals["accepted"] == 3
    orphan = notification(HOUR, "b")
    store.insert([status(orphan, "sms", "sent", tenant="b")])
    assert audit_hours(store.settings, "t", day, NOW // 1000).adds_up
    found = audit_hours(store.settings, "", day, NOW // 1000)
    assert not found.adds_up
    assert [(row["notification_id"], row["finding"]) for row in found.findings] == [
        (orphan, "a status without a request")
    ]


# ---------------------------------------------------------------- the whole stack


def heliograph(running: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "console.cli", *arguments, "--state-dir", str(running.state_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"COLUMNS": "200", "PATH": "", "TERM": "dumb"},
    )


@pytest.mark.kafka
@pytest.mark.postgres
def test_preferences_changed_later_do_not_change_the_story(running: Stack) -> None:
    user = f"x-{uuid.uuid4().hex[:8]}"
    body = {"id": user, "email": f"{user}@example.org", "phone": "+4915112345678"}
    assert running.call("POST", "/v1/users", body)[0] == 201
    path = f"/v1/users/{user}/preferences"
    assert running.call("PUT", path, {"channels": {"sms": False}, "categories": {}})[0] == 200
    sending = {
        "to": {"user_id": user},
        "content": {"subject": "S", "text": "hello"},
        "channels": ["email", "sms"],
        "category": "orders",
    }
    code, accepted, _ = running.call("POST", "/v1/notifications", sending, {"X-Correlation-ID": "corr-7"})
    assert code == 202
    nid = accepted["id"]

    def story() -> Any:
        code, reported, _ = running.call("GET", f"/v1/notifications/{nid}/explain")
        assert code == 200, reported
        return reported

    until(lambda: story()["status"] == "sent" and story()["acceptance"] is not None, 60, "sent")
    before = story()
    assert before["acceptance"]["correlation_id"] == "corr-7"
    assert before["acceptance"]["user_id"] == user
    why = {message["channel"]: message["why"] for message in before["messages"]}
    assert why["sms"].startswith("skipped: the recipient has opted out")
    assert why["email"].startswith("sent")
    assert all(message["preference_version"] for message in before["messages"])
    assert running.call("PUT", path, {"channels": {"sms": True, "email": False}, "categories": {}})[0] == 200
    assert running.call("PATCH", f"/v1/users/{user}", {"email": None})[0] == 200
    assert story() == before
    printed = heliograph(running, "explain", nid)
    assert printed.returncode == 0, printed.stderr
    assert "the recipient has opted out" in printed.stdout
    assert json.loads(heliograph(running, "explain", nid, "--json").stdout) == before
    unknown = heliograph(running, "explain", ids.notification_id(NOW - HOUR, "default"))
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "there is no such notification" in unknown.stderr


@pytest.mark.kafka
@pytest.mark.postgres
def test_audit_is_content_until_a_stray_status_is_published(running: Stack) -> None:
    code, accepted, _ = running.call(
        "POST",
        "/v1/notifications",
        {"to": {"email": "audit@example.org"}, "content": {"subject": "S", "text": "x"}, "channels": ["email"]},
    )
    assert code == 202
    until(lambda: running.call("GET", f"/v1/notifications/{accepted['id']}")[1]["status"] == "sent", 60, "sent")
    until(lambda: heliograph(running, "audit").returncode == 0, 30, "an audit without a residual")
    printed = heliograph(running, "audit")
    assert "residual 0" in printed.stdout
    orphan = ids.notification_id(NOW - 60_000, "stray")
    (source,) = [status(orphan, "sms", "sent", attempt=1, tenant="stray")]
    producer = Producer(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), client_id="test")
    producer.publish([ProducerRecord(STATUS, orphan.encode(), source.value)])
    producer.close()
    until(lambda: heliograph(running, "audit").returncode == 1, 30, "the residual")
    assert heliograph(running, "audit", "--tenant", "default").returncode == 0
    answer = json.loads(heliograph(running, "audit", "--tenant", "stray", "--json").stdout)
    assert (answer["totals"]["accepted"], answer["totals"]["residual"]) == (0, 1)
    (finding,) = answer["findings"]
    assert (finding["notification_id"], finding["finding"]) == (orphan, "a status without a request")
    # The session's stack is others' too: with its request the stray is accounted for.
    asked = {
        "notification_id": orphan,
        "tenant": "stray",
        "accepted_at": ids.accepted_at(orphan),
        "user_id": "u",
        "dry_run": True,
        "template_id": "none",
    }
    producer = Producer(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), client_id="test")
    producer.publish(
        [ProducerRecord("notify.requests.normal.v1", b"stray:u", codec("NotificationRequest").encode(asked))]
    )
    producer.close()
    until(lambda: heliograph(running, "audit").returncode == 0, 30, "no residual")


# ---------------------------------------------------------------- sixteen fates


@dataclass(frozen=True)
class Fate:
    """What is asked for, and how explain, the API and SQL have to tell of it."""

    state: str
    reason: str | None
    body: dict[str, Any]
    says: str = ""
    """A part of explain's words, a regular expression."""
    sql_says: str = ""
    waits: bool = False
    """Made when it is looked at, as it does not wait for ever."""
    by_library: bool = False
    """Published, as HTTP refuses it."""


TEXT: dict[str, Any] = {"content": {"text": "x"}, "channels": ["sms"]}
MAIL: dict[str, Any] = {"content": {"subject": "s", "text": "x"}, "channels": ["email"]}
PUSH: dict[str, Any] = {"content": {"title": "t", "body": "b"}, "channels": ["push"]}
LATER = "2099-01-01T00:00:00Z"
FATES = {
    "delivered": Fate("delivered", None, {"to": {"phone": "+4915700000001"}, **TEXT}),
    "sent": Fate("sent", None, {"to": {"email": "fate@example.org"}, **MAIL}),
    "simulated": Fate("simulated", "dry_run", {"to": {"email": "fate@example.org"}, "dry_run": True, **MAIL}),
    "opted out": Fate(
        "skipped", "opted_out", {"to": {"user_id": "fate-opted"}, **MAIL}, "has opted out", "has opted out"
    ),
    "no address": Fate("skipped", "no_address", {"to": {"user_id": "fate-opted"}, **TEXT}, "no address", "no address"),
    "suppressed": Fate("suppressed", "suppressed_address", {"to": {"email": "fate-none@example.org"}, **MAIL}),
    "expired": Fate(
        "expired", "past_expiry", {"to": {"email": "fate@example.org"}, "expires_at": "2020-01-01T00:00:00Z", **MAIL}
    ),
    "cancelled": Fate(
        "cancelled",
        "by_caller",
        {"to": {"email": "fate@example.org"}, "send_at": LATER, **MAIL},
        "the caller cancelled",
    ),
    "unknown recipient": Fate("rejected", "unknown_recipient", {"to": {"user_id": "fate-nobody"}, **MAIL}),
    "missing variable": Fate(
        "rejected",
        "missing_variable",
        {"to": {"email": "fate@example.org"}, "template": {"id": "fate"}, "channels": ["email"]},
        by_library=True,
    ),
    "undelivered": Fate("undelivered", "carrier", {"to": {"phone": "+15005553003"}, **TEXT}, "30003", "30003"),
    "bounced": Fate("bounced", "invalid_number", {"to": {"phone": "+15005553005"}, **TEXT}),
    "in doubt": Fate(
        "unknown", "in_doubt", {"to": {"email": "fate-doubt@example.org"}, "delivery": "at_most_once", **MAIL}
    ),
    "scheduled": Fate(
        "scheduled",
        None,
        {"to": {"email": "fate@example.org"}, "send_at": LATER, **MAIL},
        r"waits for its time, 2099-01-01T00:00:00",
        r"Waits for its send_at, 2099-01-01 00:00:00 UTC",
        waits=True,
    ),
    "retrying": Fate(
        "routed",
        None,
        {"to": {"email": "fate-busy@example.org"}, **MAIL},
        r"attempt [2-5] got .*451 4\.3\.0.*; the next is made at \d{4}-",
        r"Waits for a retry after .*451 4\.3\.0.* at simulator-smtp, due at \d{4}-",
        waits=True,
    ),
    "account down": Fate(
        "routed",
        None,
        {"to": {"user_id": "fate-apple"}, **PUSH},
        r"waits for simulator-apns: .* since \d{4}-.*, next probe at \d{4}-",
        r"waits for simulator-apns: .* since \d{4}-.*, next probe at \d{4}-",
        waits=True,
    ),
}
ON_THE_WAY = ("accepted", "scheduled", "held", "routed", "sending")


@pytest.fixture(scope="module")
def fates(running: Stack) -> dict[str, str]:
    """The notification of each fate, all of them on their way at once."""

    def post(path: str, body: Any, method: str = "POST") -> Any:
        code, answered, _ = running.call(method, path, body)
        assert code < 300, answered
        return answered

    def fault(**what: Any) -> None:
        url = running.endpoints["simulator"] + "/faults"
        urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(what).encode(), method="POST"), timeout=10
        ).close()

    post("/v1/users", {"id": "fate-opted", "email": "fate-opted@example.org"})
    post("/v1/users/fate-opted/preferences", {"channels": {"email": False}, "categories": {}}, "PUT")
    devices = [{"platform": "apns", "token": "fate-apple"}]
    post("/v1/users", {"id": "fate-apple", "devices": devices})
    post("/v1/suppressions", {"channel": "email", "address": "fate-none@example.org", "reason": "manual"})
    channels = {"email": {"subject": "s", "text": "{{ gone }}"}}
    post("/v1/templates", {"id": "fate", "category": "orders", "channels": channels, "publish": True})
    fault(kind="smtp", mode="drop_after_accept", match="fate-doubt")
    fault(kind="smtp", mode="500", match="fate-busy")
    fault(kind="apns", mode="reset")
    time.sleep(1)  # preferences and suppressions hold within a second
    for _ in range(30):  # the breaker opens; those that come first are its probes
        post("/v1/notifications", FATES["account down"].body)
    made = {}
    for name, fate in FATES.items():
        if not fate.waits:
            made[name] = ask_for(running, fate)
    post(f"/v1/notifications/{made['cancelled']}/cancel", None)
    return made


def ask_for(running: Stack, fate: Fate) -> str:
    """The notification's id."""
    if fate.by_library:
        with Publisher(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), tenant="default") as publisher:
            return publisher.publish(fate.body)
    code, answered, _ = running.call("POST", "/v1/notifications", fate.body)
    assert code == 202, answered
    return str(answered["id"])


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", FATES)
def test_explain_the_api_and_sql_agree_on_what_became_of_it_or_what_it_waits_for(
    running: Stack, fates: dict[str, str], name: str
) -> None:
    fate = FATES[name]
    nid = fates[name] if name in fates else ask_for(running, fate)
    why = "SELECT state, reason, why FROM v_why WHERE notification_id = {nid:UUID}"

    def told() -> dict[str, tuple[str, str, str]]:
        """Who → (state, reason, words)."""
        api = running.call("GET", f"/v1/notifications/{nid}")[1]
        story = running.call("GET", f"/v1/notifications/{nid}/explain")[1]
        waits = [waits for part in (story, *story["messages"]) if (waits := part["waits_for"])]
        assert bool(waits) <= (story["status"] in ON_THE_WAY)
        rows = running.query(why, nid=nid)
        assert len(rows) <= 1
        found = {
            "api": (api["status"], api["reason"] or "", ""),
            "explain": (story["status"], story["reason"] or "", "; ".join(waits) if fate.waits else story["why"]),
        }
        if rows:
            found["sql"] = rows[0]
        return found

    def agree() -> bool:
        found = told()
        return (
            {(state, reason) for state, reason, _ in found.values()} == {(fate.state, fate.reason or "")}
            and "sql" in found
            and re.search(fate.says, found["explain"][2]) is not None
            and re.search(fate.sql_says, found["sql"][2]) is not None
        )

    until(agree, 90, f"all three say {fate.state}, {fate.reason}: {fate.says} | {fate.sql_says}", told)
    assert {
        message["status"] for message in running.call("GET", f"/v1/notifications/{nid}/explain")[1]["messages"]
    } in (
        set(),
        {fate.state},
    )
