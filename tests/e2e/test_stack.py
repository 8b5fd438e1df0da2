"""The whole stack as its users meet it: the API in front, mailbox, ground truth and ClickHouse behind."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from schemas.topics import catalogue
from tests.e2e.conftest import Stack
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]

ROLES = (
    "api",
    "relay",
    "router-critical",
    "router-normal",
    "router-bulk",
    "timers",
    "sender-email",
    "sender-sms",
    "sender-push",
    "sender-webhook",
    "sink",
    "callbacks",
    "hooks",
)


@pytest.fixture(scope="module")
def template(running: Stack) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    channels = {
        "email": {"subject": "Hi {{ n }}", "text": "Hello {{ n }}"},
        "sms": {"text": "n {{ n }}"},
        "push": {"title": "n", "body": "{{ n }}"},
    }
    status, body, _ = running.call(
        "POST", "/v1/templates", {"id": name, "category": "orders", "channels": channels, "publish": True}
    )
    assert status == 201, body
    return name


def user(running: Stack, **fields: Any) -> str:
    name = f"u-{uuid.uuid4().hex[:8]}"
    number = int(name[2:6], 16) % 10_000_000
    body = {
        "id": name,
        "email": f"{name}@example.org",
        "phone": f"+49151{number:08d}",
        "devices": [{"platform": "fcm", "token": f"tok-{name}"}],
        **fields,
    }
    status, answer, _ = running.call("POST", "/v1/users", body)
    assert status == 201, answer
    return name


def settled(running: Stack, nid: str) -> dict[str, Any]:
    """The notification once nothing is on its way any more."""
    seen: dict[str, Any] = {}

    def done() -> bool:
        status, body, _ = running.call("GET", f"/v1/notifications/{nid}")
        assert status == 200, body
        seen.update(body)
        return body["status"] not in ("accepted", "scheduled", "held", "routed", "sending")

    until(done, 60, "settled")
    return seen


def test_user_template_send_status_mail(running: Stack, template: str) -> None:
    name = user(running)
    status, body, headers = running.call(
        "POST",
        "/v1/notifications",
        {"to": {"user_id": name}, "template": {"id": template}, "data": {"n": 7}, "channels": ["email"]},
    )
    assert status == 202, body
    assert body["status"] == "accepted"
    assert headers["location"] == f"/v1/notifications/{body['id']}"
    at_once, first, _ = running.call("GET", f"/v1/notifications/{body['id']}")
    assert (at_once, first["id"]) == (200, body["id"])
    final = settled(running, body["id"])
    assert final["status"] == "sent"
    (message,) = final["messages"]
    assert (message["channel"], message["status"], message["possible_duplicate"]) == ("email", "sent", False)
    assert [a["state"] for a in message["attempts"]] == ["sent"]
    mails = running.get("mailbox", f"/api/messages?to={name}@example.org")
    assert [m["subject"] for m in mails["entries"]] == ["Hi 7"]
    assert [e["message_id"] for e in running.get("simulator", "/accepted?kind=smtp") if name in e["to"]] == [
        message["id"]
    ]


@pytest.mark.parametrize(
    ("phone", "status", "reason"),
    [
        ("+4915112345678", "delivered", None),
        ("+15005553003", "undelivered", "carrier"),
        ("+15005553005", "bounced", "invalid_number"),
    ],
)
def test_an_sms_ends_as_the_vendor_reports(running: Stack, phone: str, status: str, reason: str | None) -> None:
    request = {"to": {"phone": phone}, "content": {"text": "Hello"}}
    code, body, _ = running.call("POST", "/v1/notifications", request)
    assert code == 202, body
    nid = body["id"]
    seen: dict[str, Any] = {}

    def reported() -> bool:
        seen.update(running.call("GET", f"/v1/notifications/{nid}")[1])
        return bool(seen["status"] == status)

    until(reported, 60, status)
    (message,) = seen["messages"]
    assert (seen["reason"], message["status"], message["reason"]) == (reason, status, reason)
    assert [(a["attempt"], a["provider"], a["state"]) for a in message["attempts"]] == [(1, "simulator-twilio", status)]
    (accept,) = (e for e in running.get("simulator", "/accepted?kind=twilio") if e["message_id"] == message["id"])
    assert message["provider_message_id"] == accept["provider_message_id"]
    # The states follow the facts by a moment, and another topic's batch by another.
    state = "SELECT state, reason FROM message_state WHERE message_id = {id:UUID}"
    until(lambda: running.query(state, id=message["id"]) == [(status, reason or "")], 30, "the state in ClickHouse")
    receipts = "SELECT state FROM receipts WHERE message_id = {id:UUID}"
    until(lambda: (status,) in running.query(receipts, id=message["id"]), 30, "the receipt in ClickHouse")
    _, events, _ = running.call("GET", f"/v1/notifications/{nid}/events")
    states = [event["state"] for event in events["entries"]]
    assert states.count("sent") == 1
    assert states.index(status) > states.index("sent")
    (residual,) = running.query("SELECT sum(residual) FROM v_accounting")
    assert residual == (0,)
    if status == "bounced":  # what its carrier does not know is not paid for again
        until(lambda: len(running.call("GET", "/v1/suppressions?channel=sms")[1]["entries"]) == 1, 30, "suppressed")


@pytest.mark.parametrize(
    ("setup", "request_fields", "status", "reason"),
    [
        ({}, {"to": {"user_id": "nobody-at-all"}}, "rejected", "unknown_recipient"),
        ({"email": None}, {}, "skipped", "no_address"),
        ({}, {"expires_at": "2020-01-01T00:00:00Z"}, "expired", "past_expiry"),
        ({}, {"dry_run": True}, "simulated", "dry_run"),
    ],
)
def test_what_is_not_sent_says_why(
    running: Stack, template: str, setup: dict[str, Any], request_fields: dict[str, Any], status: str, reason: str
) -> None:
    name = user(running, **setup)
    request = {
        "to": {"user_id": name},
        "template": {"id": template},
        "data": {"n": 1},
        "channels": ["email"],
        **request_fields,
    }
    code, body, _ = running.call("POST", "/v1/notifications", request)
    assert code == 202, body
    final = settled(running, body["id"])
    assert (final["status"], final["reason"]) == (status, reason)


def test_opt_out_and_suppression_hold_for_the_next_request(running: Stack, template: str) -> None:
    opted, suppressed = user(running), user(running)
    assert (
        running.call("PUT", f"/v1/users/{opted}/preferences", {"channels": {"email": False}, "categories": {}})[0]
        == 200
    )
    suppression = {"channel": "email", "address": f"{suppressed}@example.org", "reason": "manual"}
    assert running.call("POST", "/v1/suppressions", suppression)[0] == 201
    time.sleep(1.0)  # the promise: effective within a second
    for name, expected in ((opted, ("skipped", "opted_out")), (suppressed, ("suppressed", "suppressed_address"))):
        request = {"to": {"user_id": name}, "template": {"id": template}, "data": {"n": 1}, "channels": ["email"]}
        _, body, _ = running.call("POST", "/v1/notifications", request)
        final = settled(running, body["id"])
        assert (final["status"], final["reason"]) == expected
        assert running.get("mailbox", f"/api/messages?to={name}@example.org")["total"] == 0


def test_same_key_is_one_notification_and_another_body_a_conflict(running: Stack, template: str) -> None:
    name = user(running)
    request = {"to": {"user_id": name}, "template": {"id": template}, "data": {"n": 1}, "channels": ["email"]}
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (running.call("POST", "/v1/notifications", request, key) for _ in range(2))
    assert (first[0], second[0], first[1]["id"]) == (202, 202, second[1]["id"])
    assert second[2]["idempotent-replayed"] == "true"
    assert running.call("POST", "/v1/notifications", {**request, "data": {"n": 2}}, key)[0] == 409
    settled(running, first[1]["id"])
    assert running.get("mailbox", f"/api/messages?to={name}@example.org")["total"] == 1


@contextmanager
def load(running: Stack, template: str, users: list[str], per_second: int = 60) -> Iterator[list[str]]:
    """Requests through the API while the block runs; yields the ids that got a 202."""
    accepted: list[str] = []
    unexpected: list[object] = []
    stop = threading.Event()

    def publish() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            request = {
                "to": {"user_id": users[n % len(users)]},
                "template": {"id": template},
                "data": {"n": n},
                "priority": ("critical", "normal", "bulk")[n % 3],
            }
            try:
                status, body, _ = running.call("POST", "/v1/notifications", request)
            except (OSError, http.client.HTTPException):  # the api itself is the victim: no 202, no promise
                stop.wait(0.2)
                continue
            if status == 202:
                accepted.append(body["id"])
            elif status != 503:
                unexpected.append((status, body))
            stop.wait(1 / per_second)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield accepted
    finally:
        stop.set()
        thread.join()
    assert not unexpected


def check_fates(running: Stack, accepted: list[str], *, duplicates_allowed: bool) -> None:
    """Every 202 settled, its SMS reported delivered; the providers' log is exactly what was sent, extra accepts are flagged."""

    def states() -> Counter[str]:
        rows = running.query(
            "SELECT channel, state, count() FROM message_state WHERE notification_id IN {ids:Array(UUID)} GROUP BY 1, 2",
            ids=accepted,
        )
        return Counter({f"{channel} {state}": int(count) for channel, state, count in rows})

    wanted = dict.fromkeys(("email sent", "push sent", "sms delivered"), len(accepted))
    until(lambda: states() == wanted, 150, f"every one of {len(accepted)} sent, and every SMS delivered")
    sent = running.query(
        "SELECT toString(message_id), possible_duplicate FROM message_state WHERE notification_id IN {ids:Array(UUID)}",
        ids=accepted,
    )
    flagged = {message_id for message_id, duplicate in sent if duplicate}
    truth = Counter(entry["message_id"] for entry in running.get("simulator", "/accepted"))
    ours = {message_id: truth[message_id] for message_id, _ in sent}
    assert all(ours.values()), "a message is said to be sent that no provider took"
    doubled = {message_id for message_id, times in ours.items() if times > 1}
    assert doubled <= flagged
    assert duplicates_allowed or not flagged
    (residual,) = running.query("SELECT sum(residual) FROM v_accounting")
    assert residual == (0,)


def until_up_again(running: Stack, victim: str, old: int) -> None:
    def restarted() -> bool:
        return bool(running.endpoints["pids"].get(victim, old) != old)

    until(restarted, 30, f"{victim} restarted")


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_every_role_and_the_broker_end_once_under_load_and_nothing_is_lost(
    running: Stack, template: str, number: signal.Signals
) -> None:
    users = [user(running) for _ in range(20)]
    victims = (*ROLES, "kafka", "postgres", "clickhouse") if number == signal.SIGKILL else ROLES
    with load(running, template, users) as accepted:
        for victim in victims:
            pid = running.endpoints["pids"][victim]
            os.kill(pid, number)
            until_up_again(running, victim, pid)
            time.sleep(0.5)
        until(lambda: len(accepted) > 200, 120, "200 accepted")
    check_fates(running, accepted, duplicates_allowed=number == signal.SIGKILL)


@pytest.mark.faults
def test_poison_on_every_topic_ends_in_the_dead_letters_and_the_streams_go_on(running: Stack, template: str) -> None:
    mark = uuid.uuid4().hex.encode()
    producer = Producer(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), client_id="poison")
    topics = [topic for topic in catalogue() if topic != "notify.deadletters.v1"]
    producer.publish([ProducerRecord(topic, b"poison-" + mark, b"\xff" + mark) for topic in topics])
    producer.publish([ProducerRecord("notify.deadletters.v1", b"poison-" + mark, b"\xff" + mark)])
    producer.close()
    # Ledgers and endpoints' positions are read at a takeover: let every sender take over.
    for role in ("sender-email", "sender-sms", "sender-push", "sender-webhook", "hooks"):
        pid = running.endpoints["pids"][role]
        os.kill(pid, signal.SIGTERM)
        until_up_again(running, role, pid)

    def dead_lettered() -> set[str]:
        rows = running.query(
            "SELECT DISTINCT topic FROM dead_letters WHERE value = concat(unhex('ff'), {mark:String}) AND reason = 'undecodable'",
            mark=mark.decode(),
        )
        return {topic for (topic,) in rows}

    until(
        lambda: dead_lettered() >= set(topics),
        60,
        "dead letters of all topics",
        lambda: f"missing {set(topics) - dead_lettered()}",
    )
    name = user(running)
    request = {"to": {"user_id": name}, "template": {"id": template}, "data": {"n": 1}}
    _, body, _ = running.call("POST", "/v1/notifications", request)
    final = settled(running, body["id"])
    assert (final["status"] in ("sent", "delivered"), len(final["messages"])) == (True, 3)


def test_every_process_answers_health_and_metrics(running: Stack) -> None:
    import urllib.request

    for role, url in running.endpoints["metrics"].items():
        base = url.removesuffix("/metrics")
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            with urllib.request.urlopen(base + path, timeout=10) as response:
                assert response.status == 200, (role, path)
        if role in ROLES:
            with urllib.request.urlopen(base + "/metrics", timeout=10) as response:
                assert b"heliograph_build_info" in response.read(), role


def test_logs_are_json_without_personal_data(running: Stack) -> None:
    for role in ROLES:
        for line in (running.state_dir / "logs" / f"{role}.log").read_text().splitlines():
            assert "@example.org" not in line, (role, line)
            assert "+49151" not in line, (role, line)
