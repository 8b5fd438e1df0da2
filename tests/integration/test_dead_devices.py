"""A push to devices of two platforms, and what becomes of the dead ones: PostgreSQL and the simulator's log are the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local.ports import PortBook
from local.simulator import APNS_KEY_FILE, APNS_KEY_ID, APNS_TEAM_ID, APNS_TOPIC, webpush
from runtime import ids
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.status import Particulars, message_status, status_record
from runtime.subscriptions import Subscription, address_of
from schemas.codec import codec
from schemas.topics import RECIPIENTS, STATUS, requests_topic
from tests.integration.conftest import until
from tests.integration.reference_stack import Api, World, postgres, world
from tests.support.accounts import ec_key
from tests.support.made import message

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]


@dataclass
class Pushes:
    """The roles that push, and the simulator they push to."""

    world: World
    simulator: str
    producer: Producer

    @property
    def api(self) -> Api:
        return self.world.api

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.simulator + path, data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def accepted(self, kind: str, prefix: str) -> Counter[str]:
        return Counter(e["to"] for e in self.call("GET", f"/accepted?kind={kind}") if e["to"].startswith(prefix))

    def browser(self, name: str) -> Subscription:
        """The subscription of a browser of this name."""
        return webpush.subscription(self.simulator, name)

    def add_user(self, user_id: str, *, webpush: str | None = None, **devices: str) -> None:
        """A user with a device per platform, known to the router; a browser's is its name."""
        made: list[dict[str, Any]] = [{"platform": platform, "token": token} for platform, token in devices.items()]
        if webpush:
            made.append({"platform": "webpush", "subscription": json.loads(self.browser(webpush).address)})
        assert self.api.call("POST", "/v1/users", {"id": user_id, "devices": made}).status == 201

    def push(self, user_id: str) -> str:
        """Ask for a push to every device; the notification's id."""
        now = int(time.time() * 1000)
        nid = ids.notification_id(now, "default")
        request = {
            "notification_id": nid,
            "tenant": "default",
            "accepted_at": now,
            "user_id": user_id,
            "channels": ["push"],
            "content": b'{"title": "T", "body": "B"}',
        }
        value = codec("NotificationRequest").encode(request)
        self.producer.publish([ProducerRecord(requests_topic("normal"), f"default:{user_id}".encode(), value)])
        return nid

    def states(self, nid: str) -> list[tuple[str, str | None]]:
        """(state, reason) of every status of a notification."""
        records = self.world.records(STATUS)
        found = [codec("DeliveryStatus").decode(r.value) for r in records if r.key == nid.encode()]
        return sorted((s["state"], s["reason"]) for s in found)

    def tokens(self, user_id: str) -> list[str]:
        with psycopg.connect(self.world.postgres.dsn) as connection:
            row = connection.execute("SELECT devices FROM users WHERE user_id = %s", (user_id,)).fetchone()
        assert row is not None
        return [address_of(device) or "" for device in row[0]]


@pytest.fixture(scope="module")
def pushes(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushes]:
    directory: Path = tmp_path_factory.mktemp("pushes")
    book = PortBook()
    http, smtp, apns = book.reserve("simulator"), book.reserve("smtp"), book.reserve("apns")
    log = (directory / "simulator.log").open("wb")
    simulator = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "local.simulator",
            "--http-port",
            str(http),
            "--smtp-port",
            str(smtp),
            "--apns-port",
            str(apns),
            "--data-dir",
            str(directory),
            "--maildir",
            str(directory / "mail"),
        ],
        stderr=log,
    )
    (directory / "vapid-key.pem").write_text(ec_key())
    config = directory / "heliograph.toml"
    config.write_text(f"""
[[providers]]
name = "google"
channel = "push"
kind = "fcm"
base_url = "http://127.0.0.1:{http}"
credentials_file = "{directory}/fcm-credentials.json"
[[providers]]
name = "apple"
channel = "push"
kind = "apns"
base_url = "http://127.0.0.1:{apns}"
key_file = "{APNS_KEY_FILE}"
key_id = "{APNS_KEY_ID}"
team_id = "{APNS_TEAM_ID}"
topic = "{APNS_TOPIC}"
[[providers]]
name = "browsers"
channel = "push"
kind = "webpush"
private_key_file = "vapid-key.pem"
subject = "mailto:push@shop.example"
hosts = ["127.0.0.1"]
""")
    world.settings |= {
        "HELIOGRAPH_CONFIG": str(config),
        "HELIOGRAPH_ROUTER__ENGINE": "loop",
        "HELIOGRAPH_OUTBOUND__ALLOW": "127.0.0.1",
    }
    producer = Producer(world.broker.settings, client_id="test")
    made = Pushes(world, f"http://127.0.0.1:{http}", producer)

    def is_up() -> bool:
        try:
            return bool(made.call("GET", "/readyz"))
        except OSError:
            return False

    until(is_up, 30, "simulator")
    for role in (("api",), ("relay",), ("router", "--lane", "normal"), ("sender", "--channel", "push"), ("timers",)):
        world.run(*role)
    world.wait_ready()
    yield made
    world.broker.stop_roles()
    producer.close()
    simulator.terminate()
    simulator.wait(10)
    log.close()
    book.close()


def test_devices_of_several_platforms_get_one_message_each(pushes: Pushes) -> None:
    pushes.add_user("many", fcm="many-android", apns="many-iphone", webpush="many-browser")
    nid = pushes.push("many")
    # A busy machine may make one of them try again.
    until(lambda: [state for state, _ in pushes.states(nid)].count("sent") == 3, 60, "all sent")
    assert pushes.accepted("fcm", "many-") == {"many-android": 1}
    assert pushes.accepted("apns", "many-") == {"many-iphone": 1}
    address = pushes.browser("many-browser").address
    assert pushes.accepted("webpush", address) == {address: 1}


def test_device_of_a_platform_without_an_account_is_rejected(pushes: Pushes) -> None:
    now = int(time.time() * 1000)
    nid = ids.notification_id(now, "default")
    request = {
        "notification_id": nid,
        "tenant": "default",
        "accepted_at": now,
        "channels": ["push"],
        "addresses": [{"channel": "push", "value": "tok", "platform": "onesignal"}],
        "content": b'{"title": "T"}',
    }
    value = codec("NotificationRequest").encode(request)
    pushes.producer.publish([ProducerRecord(requests_topic("normal"), b"default:x", value)])
    until(lambda: ("rejected", "provider_rejected") in pushes.states(nid), 60, "rejected")


def test_subscription_that_has_ended_leaves_the_profile(pushes: Pushes) -> None:
    pushes.add_user("left", fcm="left-android", webpush="left-browser")
    pushes.call(
        "POST", "/faults", {"kind": "webpush", "mode": "reject", "match": pushes.browser("left-browser").endpoint}
    )
    nid = pushes.push("left")
    until(lambda: ("bounced", "invalid_token") in pushes.states(nid), 60, "bounced")
    until(lambda: pushes.tokens("left") == ["left-android"], 6, "the subscription gone")


@pytest.mark.parametrize(("kind", "dead", "alive"), [("apns", "iphone", "android"), ("fcm", "android", "iphone")])
def test_dead_device_leaves_the_profile_within_seconds(pushes: Pushes, kind: str, dead: str, alive: str) -> None:
    user = f"gone-{kind}"
    pushes.add_user(user, fcm=f"{user}-android", apns=f"{user}-iphone")
    pushes.call("POST", "/faults", {"kind": kind, "mode": "reject", "match": f"{user}-{dead}"})
    nid = pushes.push(user)
    until(lambda: ("bounced", "invalid_token") in pushes.states(nid), 60, "bounced")
    until(lambda: pushes.tokens(user) == [f"{user}-{alive}"], 6, "the dead device gone")

    def published() -> list[str]:
        profiles = [r for r in pushes.world.records(RECIPIENTS) if r.key == f"default:{user}".encode() and r.value]
        return [device["token"] for device in codec("RecipientProfile").decode(profiles[-1].value)["devices"]]

    until(lambda: published() == [f"{user}-{alive}"], 6, "the profile published")


def invalid(user_id: str, token: str, provider: str) -> ProducerRecord:
    now = int(time.time() * 1000)
    nid = ids.notification_id(now, "default")
    message_id = ids.message_id(nid, "push", ids.address_hash("push", token))
    pushed = message(
        notification_id=nid, message_id=message_id, tenant="default", channel="push", user_id=user_id, address=token
    )
    particulars: Particulars = {"reason": "invalid_token", "detail": "400 BadDeviceToken", "provider": provider}
    return status_record(message_status(pushed, "bounced", now=now, attempt=1, **particulars))


def test_brake_keeps_the_devices_of_an_account_that_calls_all_of_them_dead(pushes: Pushes) -> None:
    users = [f"storm-{n}" for n in range(30)]
    for user in (*users, "alone"):
        pushes.add_user(user, apns=f"{user}-iphone")
    pushes.producer.publish([invalid(user, f"{user}-iphone", "misconfigured") for user in users])
    time.sleep(2)
    pushes.producer.publish([invalid("alone", "alone-iphone", "apple")])
    until(lambda: pushes.tokens("alone") == [], 6, "our account's dead device gone")
    assert [user for user in users if pushes.tokens(user) != [f"{user}-iphone"]] == []
