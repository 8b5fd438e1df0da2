"""The api as a process on a real Kafka and PostgreSQL."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from producers.reference.keys import create_api_key, parse_key, revoke_api_key
from runtime import ids
from schemas.codec import codec
from schemas.topics import requests_topic
from tests.integration.conftest import until
from tests.integration.reference_stack import PEPPER, Answer, World, end, in_threads, postgres, text_to, world

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]


@pytest.fixture(scope="module", autouse=True)
def roles(world: World) -> Iterator[None]:
    world.run("relay")
    world.run("api")
    world.wait_ready()
    yield


def _requests(world: World, lane: str = "normal") -> list[dict[str, Any]]:
    return [codec("NotificationRequest").decode(record.value) for record in world.records(requests_topic(lane))]


def test_accepted_notification_is_on_its_topic_under_the_answered_id(world: World) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    answer = world.api.send(text_to("first"), X_Correlation_ID="corr-1", traceparent=trace)
    assert answer.status == 202
    assert answer.body["status"] == "accepted"
    assert answer.headers["location"] == f"/v1/notifications/{answer.body['id']}"
    assert answer.headers["x-correlation-id"] == "corr-1"
    records = [r for r in world.records(requests_topic("normal")) if r.key == b"default:first"]
    assert len(records) == 1
    request = codec("NotificationRequest").decode(records[0].value)
    assert request["notification_id"] == answer.body["id"]
    assert request["accepted_at"] == ids.accepted_at(answer.body["id"])
    assert request["correlation_id"] == "corr-1"
    assert request["source"] == "http"
    assert dict(records[0].headers)["traceparent"] == trace.encode()


def test_priority_picks_the_lane(world: World) -> None:
    answer = world.api.send({**text_to("lane"), "priority": "critical"})
    assert answer.body["id"] in {r["notification_id"] for r in _requests(world, "critical")}


@pytest.mark.parametrize(
    ("raw", "headers", "status", "code", "pointer"),
    [
        (b"{", {}, 400, "invalid_json", ""),
        (b'{"to":{"user_id":"a","user_id":"b"}}', {}, 400, "invalid_json", "/to/user_id"),
        (b'{"to":{"user_id":"a"},"data":{"x":NaN}}', {}, 400, "invalid_json", "/data/x"),
        (b'{"to":{"user_id":"a"},"content":{"text":"x"},"data":{"x":1e999}}', {}, 400, "invalid_request", "/data"),
        (b'{"to":{"user_id":"a"},"content":{"text":"x"},"colour":1}', {}, 400, "invalid_request", "/colour"),
        (b'{"to":{"user_id":"a"},"content":{"title":"x"},"channels":["sms"]}', {}, 400, "invalid_request", ""),
        (b'{"to":{"email":"nobody"},"content":{"text":"x"}}', {}, 400, "invalid_request", "/to/email"),
        (b"[]", {}, 400, "invalid_request", ""),
        (b"{}", {"Content_Encoding": "gzip"}, 415, "unsupported_media_type", None),
        (b"{}", {"Content_Type": "text/plain"}, 415, "unsupported_media_type", None),
        (b"{}", {"Authorization": "Bearer hg_wrong"}, 401, "unauthenticated", None),
        (b"{}", {"Authorization": "Basic eA=="}, 401, "unauthenticated", None),
        (b'{"to":{"user_id":"a"},"content":{"text":"x"}}', {"Idempotency_Key": "a b"}, 400, "invalid_header", None),
        (
            b'{"to":{"user_id":"a"},"content":{"text":"x"},"request_id":"r"}',
            {"Idempotency_Key": "k"},
            400,
            "invalid_request",
            "/request_id",
        ),
    ],
)
def test_refusal_is_a_problem_document(
    world: World, raw: bytes, headers: dict[str, str], status: int, code: str, pointer: str | None
) -> None:
    answer = world.api.call("POST", "/v1/notifications", raw=raw, **headers)
    assert (answer.status, answer.body["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body["request_id"]
    if pointer is not None:
        assert pointer in [error["pointer"] for error in answer.body["errors"]]


def test_body_of_the_limit_is_taken_and_one_byte_more_is_not(world: World) -> None:
    frame = json.dumps(text_to("big", "")).encode()
    fitting = json.dumps(text_to("big", "x" * (262_144 - len(frame)))).encode()
    assert len(fitting) == 262_144
    assert world.api.call("POST", "/v1/notifications", raw=fitting).status == 202
    try:
        assert world.api.call("POST", "/v1/notifications", raw=fitting + b" ").status == 413
    except ConnectionError:
        pytest.fail("the answer must be readable although the body was not read")


def test_same_key_and_body_again_is_replayed_and_another_body_is_a_conflict(world: World) -> None:
    first = world.api.send(text_to("idem"), Idempotency_Key="k1")
    reordered = json.dumps(dict(reversed(text_to("idem").items())), indent=1).encode()
    again = world.api.call("POST", "/v1/notifications", raw=reordered, Idempotency_Key="k1")
    by_body = world.api.send({**text_to("idem"), "request_id": "k1"})
    assert (first.status, again.status, by_body.status) == (202, 202, 202)
    assert first.body == again.body == by_body.body
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == by_body.headers["idempotent-replayed"] == "true"
    other = world.api.send(text_to("idem", "other"), Idempotency_Key="k1")
    assert (other.status, other.body["code"]) == (409, "idempotency_conflict")
    assert len([r for r in _requests(world) if r["idempotency_key"] == "k1"]) == 1


def test_race_of_fifty_with_one_key_gives_one_id_and_one_record(world: World) -> None:
    answers = in_threads(50, lambda _: world.api.send(text_to("race"), Idempotency_Key="race-1"))
    assert Counter(answer.status for answer in answers) == {202: 50}
    assert len({answer.body["id"] for answer in answers}) == 1
    assert Counter("idempotent-replayed" in answer.headers for answer in answers) == {True: 49, False: 1}
    assert len([r for r in _requests(world) if r["idempotency_key"] == "race-1"]) == 1


def test_keys_of_two_tenants_do_not_meet(world: World) -> None:
    other = create_api_key(world.postgres.dsn, "other", "tests", pepper=PEPPER)
    mine = world.api.send(text_to("t"), Idempotency_Key="shared")
    theirs = world.api.call("POST", "/v1/notifications", text_to("t"), key=other, Idempotency_Key="shared")
    assert (mine.status, theirs.status) == (202, 202)
    assert mine.body["id"] != theirs.body["id"]


def test_revoked_key_is_refused_within_a_second(world: World) -> None:
    key = create_api_key(world.postgres.dsn, "default", "short", pepper=PEPPER)
    assert world.api.call("POST", "/v1/notifications", text_to("r"), key=key).status == 202
    parsed = parse_key(key)
    assert parsed is not None
    assert revoke_api_key(world.postgres.dsn, parsed[0])
    time.sleep(1)
    assert world.api.call("POST", "/v1/notifications", text_to("r"), key=key).status == 401


def test_template_works_right_after_its_201_and_its_variables_are_asked_for(world: World) -> None:
    for number in range(5):
        template = {
            "id": f"order-{number}",
            "category": "orders",
            "channels": {"sms": {"text": "Order {{ order.id }}"}},
        }
        assert world.api.send({"to": {"user_id": "u"}, "template": {"id": f"order-{number}"}}).status == 400
        created = world.api.call("POST", "/v1/templates", template)
        assert created.status == 201
        assert created.body == {"id": f"order-{number}", "version": 1, "published": True, "variables": ["order.id"]}
        body = {"to": {"user_id": "u"}, "template": {"id": f"order-{number}"}}
        missing = world.api.send(body)
        assert (missing.status, missing.body["code"]) == (400, "missing_variable")
        assert missing.body["errors"][0]["pointer"] == "/data/order/id"
        assert world.api.send({**body, "data": {"order": {"id": 1}}}).status == 202
        assert world.api.send({**body, "variables": {"order": {"id": 1}}}).status == 202


def test_unknown_route_and_method_are_problem_documents(world: World) -> None:
    assert world.api.call("GET", "/v2/nothing").body["code"] == "not_found"
    assert world.api.call("DELETE", "/v1/users").body["code"] == "method_not_allowed"


def test_openapi_covers_ingest_and_reference_data(world: World) -> None:
    document = world.api.call("GET", "/openapi.json").body
    assert document["openapi"].startswith("3.1")
    body = document["paths"]["/v1/notifications"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Notification"}
    for path in ("/v1/users", "/v1/users/{user_id}", "/v1/templates/{template_id}/publish", "/v1/suppressions"):
        assert path in document["paths"]
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"#/')[1:]}:
        node: Any = document
        for part in reference.split("/"):
            node = node[part]
    assert world.api.call("GET", "/docs").status == 200


def test_metrics_and_liveness_are_served_on_the_same_port(world: World) -> None:
    assert "heliograph_requests_accepted_total" in world.api.call("GET", "/metrics").body
    assert world.api.call("GET", "/livez").status == 200
    assert world.api.call("GET", "/health").status == 200


def test_second_api_on_the_port_says_which_setting_to_change(world: World) -> None:
    second = world.run("api")
    assert second.wait(20) == 1
    log = (world.broker.directory / "api.log").read_text()
    assert "HELIOGRAPH_API__PORT" in log


def test_postgres_outage_refuses_keyed_requests_and_lets_others_pass(world: World) -> None:
    assert world.api.send(text_to("before")).status == 202
    world.postgres.stop()
    try:
        keyed = world.api.send(text_to("down"), Idempotency_Key="down-1")
        assert (keyed.status, keyed.body["code"]) == (503, "store_unavailable")
        assert keyed.headers["retry-after"] == "1"
        time.sleep(1.5)
        assert [world.api.send(text_to("down")).status for _ in range(3)] == [202] * 3
        assert world.api.call("GET", "/readyz").status == 200
        assert world.api.call("GET", "/v1/users/u1").status == 503
    finally:
        world.postgres.start()
    until(lambda: world.api.send(text_to("down"), Idempotency_Key="down-1").status == 202, 10, "keyed ingest")
    assert len([r for r in _requests(world) if r["idempotency_key"] == "down-1"]) == 1
    # The relay comes back by itself.
    assert world.api.call("POST", "/v1/users", {"id": "after-outage"}).status == 201


def test_kafka_outage_is_503_and_a_retry_of_a_key_keeps_its_id(world: World) -> None:
    world.broker.process.kill()
    world.broker.process.wait()
    try:
        began = time.monotonic()
        unkeyed = world.api.send(text_to("kafka-down"))
        keyed = world.api.send(text_to("kafka-down"), Idempotency_Key="kafka-1")
        assert (unkeyed.status, keyed.status) == (503, 503)
        assert unkeyed.body["code"] == "kafka_unavailable"
        assert "retry-after" in unkeyed.headers
        assert time.monotonic() - began < 12
    finally:
        world.broker.start()
    answers: list[Answer] = []

    def accepted_at_last() -> bool:
        answers.append(world.api.send(text_to("kafka-down"), Idempotency_Key="kafka-1"))
        return answers[-1].status == 202

    until(accepted_at_last, 30, "ingest")
    accepted = {r["notification_id"] for r in _requests(world) if r["idempotency_key"] == "kafka-1"}
    assert accepted == {answers[-1].body["id"]}
    assert answers[-1].headers["idempotent-replayed"] == "true"


def test_sigterm_ends_the_api_with_everything_it_accepted_on_the_topic(world: World) -> None:
    process = world.broker.roles[1]
    for number in range(20):
        assert world.api.send(text_to(f"last-{number}")).status == 202
    assert end(process) == 0
    assert len([r for r in _requests(world) if (r["user_id"] or "").startswith("last-")]) == 20
