"""Customers' endpoints are told of facts: through the API, the relay and the hooks role, over a real Kafka and PostgreSQL. The
receiver is the oracle."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import AdminClient

from runtime import ids
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.status import fact, status_record
from schemas.events import DeliveryStatus
from schemas.topics import ENDPOINTS, HOOK_POSITIONS, STATUS
from tests.integration.conftest import until
from tests.integration.reference_stack import World, postgres, world
from tests.support.hook_receiver import HookReceiver, Mode, in_a_thread, verifies

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]


@dataclass
class Stage:
    """The roles, the receiver, and a publisher of facts."""

    world: World
    receiver: HookReceiver
    producer: Producer
    hooks: subprocess.Popen[bytes]
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1_000_000)))

    def create(self, name: str, **more: Any) -> dict[str, Any]:
        made = self.world.api.call("POST", "/v1/webhooks", {"url": self.receiver.url(name), **more})
        assert made.status == 201, made
        self.receiver.secrets[name] = [made.body["secret"]]
        return dict(made.body)

    def publish(self, count: int = 1, state: str = "sent", tenant: str = "default", **more: Any) -> set[str]:
        """Facts of as many notifications; their event ids."""
        facts = [self.fact(state, tenant, **more) for _ in range(count)]
        self.producer.publish([status_record(each) for each in facts])
        return {each["event_id"] for each in facts}

    def fact(self, state: str, tenant: str, **more: Any) -> DeliveryStatus:
        now = int(datetime.now(UTC).timestamp() * 1000)
        nid = ids.notification_id(now, tenant, f"hooks-{next(self.numbers)}")
        message_id = ids.message_id(nid, "email", "x")
        about = {"message_id": message_id, "channel": "email", "category": "orders", **more}
        return fact(ids.event_id(message_id, state, 1), nid, tenant, "normal", state, now, about, attempt=1)  # type: ignore[arg-type]

    def has(self, name: str, endpoint: dict[str, Any], events: set[str]) -> bool:
        return {ids.hook_id(endpoint["id"], event) for event in events} <= self.receiver.ids(name)

    def until_told(self, name: str, endpoint: dict[str, Any], events: set[str], timeout_s: float = 30) -> None:
        until(
            lambda: self.has(name, endpoint, events), timeout_s, f"{name} told", lambda: len(self.receiver.told[name])
        )

    def start(self) -> None:
        self.hooks = self.world.run("hooks")

    def read(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        return dict(self.world.api.call("GET", f"/v1/webhooks/{endpoint['id']}").body)


@pytest.fixture(scope="module")
def stage(world: World) -> Iterator[Stage]:
    world.settings |= {
        "HELIOGRAPH_HOOKS__SCHEDULE_S": "[0, 0.3, 0.5, 0.5, 0.5]",
        "HELIOGRAPH_OUTBOUND__ALLOW": "127.0.0.1",
    }
    for role in ("api", "relay"):
        world.run(role)
    with in_a_thread(HookReceiver()) as receiver:
        made = Stage(world, receiver, Producer(world.broker.settings, client_id="test"), world.run("hooks"))
        world.wait_ready()
        yield made
        made.producer.close()
        world.broker.stop_roles()
    assert receiver.forged == []


def test_endpoint_is_told_each_fact_once_signed_and_without_who_it_is_about(stage: Stage) -> None:
    endpoint = stage.create("plain", description="one")
    before = stage.fact(
        "sent", "default", recipient="zoe@example.org", detail="to zoe@example.org", domain="example.org"
    )
    stage.producer.publish([status_record(before)])
    stage.until_told("plain", endpoint, {before["event_id"]})
    (requests,) = stage.receiver.told["plain"].values()
    assert len(requests) == 1
    told = requests[0]
    assert told.json == {
        "type": "message.sent",
        "timestamp": datetime.fromtimestamp(before["occurred_at"] / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        + "Z",
        "data": {
            "notification_id": before["notification_id"],
            "message_id": before["message_id"],
            "event_id": before["event_id"],
            "state": "sent",
            "reason": None,
            "channel": "email",
            "category": "orders",
            "lane": "normal",
            "attempt": 1,
            "possible_duplicate": False,
            "template_id": None,
            "template_version": None,
            "correlation_id": None,
        },
    }
    assert b"zoe" not in told.body and b"example.org" not in told.body


def test_secret_is_shown_once_and_stored_sealed(stage: Stage) -> None:
    endpoint = stage.create("sealed")
    assert endpoint["secret"].startswith("whsec_")
    assert "secret" not in stage.read(endpoint)
    listed = stage.world.api.call("GET", "/v1/webhooks").body["entries"]
    assert endpoint["id"] in {each["id"] for each in listed} and not any("secret" in each for each in listed)
    stored = [
        record.value for record in stage.world.records(ENDPOINTS) if record.key == f"default:{endpoint['id']}".encode()
    ]
    assert stored and not any(endpoint["secret"].encode() in (value or b"") for value in stored)


def test_filters_and_tenants_decide_what_is_told(stage: Stage) -> None:
    endpoint = stage.create("filtered", states=["bounced"], channels=["email"], categories=["orders"])
    others = stage.publish(state="sent") | stage.publish(state="bounced", category="other")
    others |= stage.publish(state="bounced", channel="sms") | stage.publish(state="bounced", tenant="other")
    wanted = stage.publish(3, "bounced")
    stage.until_told("filtered", endpoint, wanted)
    assert stage.receiver.ids("filtered") == {ids.hook_id(endpoint["id"], event) for event in wanted}


def test_killed_role_tells_what_it_missed_and_little_twice(stage: Stage) -> None:
    endpoint = stage.create("killed")
    first = stage.publish(200)
    stage.until_told("killed", endpoint, first)
    time.sleep(1.5)  # positions are written twice a second
    stage.hooks.kill()
    stage.hooks.wait(10)
    missed = stage.publish(300)
    stage.start()
    stage.until_told("killed", endpoint, missed | first)
    twice = [requests for requests in stage.receiver.told["killed"].values() if len(requests) > 1]
    assert len(twice) <= 50


def test_endpoint_that_was_away_is_caught_up_and_others_do_not_wait(stage: Stage) -> None:
    away, well = stage.create("away"), stage.create("well")
    stage.receiver.modes["away"] = Mode("dead")
    events = stage.publish(500)
    stage.until_told("well", well, events)
    until(lambda: stage.read(away)["deliveries"]["condition"] == "failing", 30, "failing")
    assert stage.receiver.requests["away"] < 100
    stage.hooks.send_signal(signal.SIGKILL)
    stage.hooks.wait(10)
    stage.start()
    events |= stage.publish(500)
    stage.until_told("well", well, events)
    stage.receiver.modes["away"] = Mode()
    stage.until_told("away", away, events)
    until(lambda: stage.read(away)["deliveries"]["condition"] == "live", 30, "live")


def test_gone_endpoint_is_disabled_until_it_is_changed(stage: Stage) -> None:
    endpoint = stage.create("gone")
    stage.receiver.modes["gone"] = Mode("status", status=410)
    events = stage.publish(50)
    until(lambda: stage.read(endpoint)["deliveries"]["condition"] == "disabled", 30, "disabled")
    assert stage.read(endpoint)["deliveries"]["cause"] == "410"
    asked = stage.receiver.requests["gone"]
    events |= stage.publish(50)
    stage.receiver.modes["gone"] = Mode()
    assert stage.receiver.requests["gone"] == asked
    changed = stage.world.api.call("PATCH", f"/v1/webhooks/{endpoint['id']}", {"description": "back"})
    assert changed.status == 200 and changed.body["deliveries"]["condition"] == "live"
    stage.until_told("gone", endpoint, events)


def test_fact_that_is_refused_alone_is_tried_again_and_holds_up_no_other(stage: Stage) -> None:
    endpoint = stage.create("flaky")
    stage.receiver.modes["flaky"] = Mode("flaky")
    events = stage.publish(300)
    stage.until_told("flaky", endpoint, events)
    assert stage.read(endpoint)["deliveries"]["given_up"] == 0


def test_both_secrets_sign_while_one_replaces_the_other(stage: Stage) -> None:
    endpoint = stage.create("rotated")
    rotated = stage.world.api.call("POST", f"/v1/webhooks/{endpoint['id']}/rotate", {"overlap_s": 60})
    assert rotated.status == 200 and rotated.body["previous_secret_until"]
    old, new = endpoint["secret"], rotated.body["secret"]
    assert new != old
    stage.receiver.secrets["rotated"] = [new, old]

    def last() -> Any:
        events = stage.publish()
        stage.until_told("rotated", endpoint, events)
        return stage.receiver.told["rotated"][ids.hook_id(endpoint["id"], events.pop())][0]

    until(lambda: len(last().headers["webhook-signature"].split()) == 2, 10, "two signatures")
    told = last()
    assert verifies(old, told.headers, told.body) and verifies(new, told.headers, told.body)
    assert stage.world.api.call("POST", f"/v1/webhooks/{endpoint['id']}/rotate", {"overlap_s": 0}).status == 200
    stage.receiver.secrets.pop("rotated")
    until(lambda: len(last().headers["webhook-signature"].split()) == 1, 10, "one signature")
    told = last()
    assert not verifies(old, told.headers, told.body) and not verifies(new, told.headers, told.body)


def test_replay_tells_again_under_the_same_ids(stage: Stage) -> None:
    before = datetime.now(UTC)
    events = stage.publish(20)
    endpoint = stage.create("replayed")
    later = stage.publish(5)
    stage.until_told("replayed", endpoint, later)
    assert not stage.has("replayed", endpoint, events)
    answer = stage.world.api.call("POST", f"/v1/webhooks/{endpoint['id']}/replay", {"from": before.isoformat()})
    assert answer.status == 202, answer
    stage.until_told("replayed", endpoint, events | later)
    again = stage.receiver.told["replayed"][ids.hook_id(endpoint["id"], next(iter(later)))]
    until(lambda: len(again) == 2, 10, "told again")


def test_test_makes_one_signed_request_and_shows_the_answer(stage: Stage) -> None:
    endpoint = stage.create("tested", enabled=False)
    answer = stage.world.api.call("POST", f"/v1/webhooks/{endpoint['id']}/test")
    assert answer.status == 200 and answer.body["delivered"] and answer.body["answer"] == "204"
    (requests,) = stage.receiver.told["tested"].values()
    assert requests[0].json["type"] == "endpoint.test"
    stage.receiver.modes["tested"] = Mode("dead")
    answer = stage.world.api.call("POST", f"/v1/webhooks/{endpoint['id']}/test")
    assert answer.status == 200 and not answer.body["delivered"]


def test_deleted_endpoint_is_told_nothing_and_leaves_no_position(stage: Stage) -> None:
    endpoint = stage.create("deleted")
    stage.until_told("deleted", endpoint, stage.publish())
    assert stage.world.api.call("DELETE", f"/v1/webhooks/{endpoint['id']}").status == 204
    until(lambda: not _positions(stage, endpoint), 20, "positions ended")
    asked = stage.receiver.requests["deleted"]
    well = stage.create("after-deleted")
    stage.until_told("after-deleted", well, stage.publish(5))
    assert stage.receiver.requests["deleted"] == asked
    assert stage.world.api.call("GET", f"/v1/webhooks/{endpoint['id']}").status == 404


def _positions(stage: Stage, endpoint: dict[str, Any]) -> set[bytes]:
    last: dict[bytes, bytes | None] = {}
    for record in stage.world.records(HOOK_POSITIONS):
        last[record.key or b""] = record.value
    return {key for key, value in last.items() if value is not None and key.startswith(endpoint["id"].encode())}


def test_endpoint_whose_place_the_topic_dropped_is_told_what_is_left_and_says_how_much_is_gone(stage: Stage) -> None:
    endpoint = stage.create("late")

    def gone() -> int:
        return int(stage.read(endpoint)["deliveries"]["dropped"])

    told = stage.publish(20)
    stage.until_told("late", endpoint, told)
    stage.receiver.modes["late"] = Mode("dead")
    dropped = stage.publish(40)
    until(lambda: stage.read(endpoint)["deliveries"]["condition"] == "failing", 30, "failing")
    stage.hooks.kill()
    stage.hooks.wait(10)
    _drop_all(stage, STATUS)
    left = stage.publish(30)
    stage.receiver.modes["late"] = Mode()
    stage.start()
    stage.until_told("late", endpoint, left)
    until(lambda: stage.read(endpoint)["deliveries"]["condition"] == "live", 30, "live")
    until(lambda: gone() >= len(dropped), 30, "what is gone is said", gone)
    # Half a second of positions, which a kill costs, may count what was told just before.
    assert gone() <= len(dropped) + len(told)
    assert not {ids.hook_id(endpoint["id"], event) for event in dropped} & stage.receiver.ids("late")
    stage.until_told("late", endpoint, stage.publish(5))


def _drop_all(stage: Stage, topic: str) -> None:
    """As retention does: what the topic has now is gone, and offsets go on."""
    admin = AdminClient({"bootstrap.servers": stage.world.broker.bootstrap_servers})
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
    for done in admin.delete_records([TopicPartition(topic, number, OFFSET_END) for number in partitions]).values():
        done.result(20)


def test_record_that_is_no_fact_stops_nothing(stage: Stage) -> None:
    endpoint = stage.create("poisoned")
    stage.producer.publish([ProducerRecord("notify.status.v1", b"x", value) for value in (b"", b"\x00junk", None)])
    stage.until_told("poisoned", endpoint, stage.publish(5))


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"url": "http://shop.example/x"}, "/url"),
        ({"url": "https://10.0.0.1/x"}, "/url"),
        ({"url": "https://shop.example/x", "states": ["nonsense"]}, "/states/0"),
        ({"url": "https://shop.example/x", "channels": ["carrier-pigeon"]}, "/channels/0"),
        ({"url": "https://shop.example/x", "more": 1}, "/more"),
        ({}, "/url"),
    ],
)
def test_webhook_that_cannot_be_is_refused_with_its_place(stage: Stage, body: dict[str, Any], pointer: str) -> None:
    answer = stage.world.api.call("POST", "/v1/webhooks", body)
    assert answer.status == 400 and answer.body["errors"][0]["pointer"] == pointer, answer
