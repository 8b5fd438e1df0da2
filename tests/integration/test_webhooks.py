"""Messages to webhooks, Slack and Teams through every role, and what becomes of a receiver that is gone: PostgreSQL and the
simulator's log are the oracle."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from local.ports import PortBook
from schemas.codec import codec
from schemas.topics import STATUS, dispatch_topic, ledger_topic
from tests.integration.conftest import until
from tests.integration.reference_stack import World, postgres, world
from tests.support.accounts import HOOK_KINDS, hook_at, webhook_secret

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]

TEMPLATE = {
    "id": "shipped",
    "channels": {
        "webhook": {
            "text": "Order {{ order }} for {{ name }}",
            "json": {
                "type": "AdaptiveCard",
                "body": [{"type": "TextBlock", "text": "Order {{ order }} for {{ name }}", "wrap": True}],
            },
        }
    },
}
HOSTILE = 'Zoë "}],"x":[{"<!here>'


@dataclass
class Hooks:
    """The roles that post, and the simulator they post to."""

    world: World
    url: str
    """Of the simulator."""

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def accepted(self, kind: str, address: str) -> list[Any]:
        return [each for each in self.call("GET", f"/accepted?kind={kind}") if each["to"] == address]

    def add_user(self, user_id: str) -> dict[str, str]:
        """A user with a webhook of every platform, and the addresses."""
        addresses = {kind: hook_at(kind, self.url, user_id) for kind in HOOK_KINDS}
        devices = [{"platform": kind, "token": address} for kind, address in addresses.items()]
        assert self.world.api.call("POST", "/v1/users", {"id": user_id, "devices": devices}).status == 201
        return addresses

    def notify(self, body: dict[str, Any]) -> str:
        made = self.world.api.call("POST", "/v1/notifications", body)
        assert made.status == 202, made
        return str(made.body["id"])

    def events(self, nid: str) -> list[dict[str, Any]]:
        records = self.world.records(STATUS)
        return [codec("DeliveryStatus").decode(r.value) for r in records if r.key == nid.encode()]

    def states(self, nid: str) -> list[tuple[str, str | None]]:
        return sorted((event["state"], event["reason"]) for event in self.events(nid))


@pytest.fixture(scope="module")
def hooks(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hooks]:
    directory: Path = tmp_path_factory.mktemp("hooks")
    book = PortBook()
    http, smtp = book.reserve("simulator"), book.reserve("smtp")
    command = [sys.executable, "-m", "local.simulator", "--http-port", str(http), "--smtp-port", str(smtp)]
    command += ["--data-dir", str(directory), "--maildir", str(directory / "mail")]
    log = (directory / "simulator.log").open("wb")
    simulator = subprocess.Popen(command, stderr=log)
    config = directory / "heliograph.toml"
    providers = "".join(f'[[providers]]\nname = "{k}-1"\nchannel = "webhook"\nkind = "{k}"\n' for k in HOOK_KINDS[1:])
    config.write_text(
        f'[outbound]\nallow = ["127.0.0.1"]\n[[providers]]\nname = "webhook-1"\nchannel = "webhook"\nkind = "webhook"\n'
        f'secret = "{webhook_secret()}"\n{providers}'
    )
    world.settings |= {"HELIOGRAPH_CONFIG": str(config), "HELIOGRAPH_ROUTER__ENGINE": "loop"}
    made = Hooks(world, f"http://127.0.0.1:{http}")

    def is_up() -> bool:
        try:
            return bool(made.call("GET", "/readyz"))
        except OSError:
            return False

    until(is_up, 30, "simulator")
    for role in (("api",), ("relay",), ("router", "--lane", "normal"), ("sender", "--channel", "webhook"), ("timers",)):
        world.run(*role)
    world.wait_ready()
    assert world.api.call("POST", "/v1/templates", TEMPLATE).status == 201
    yield made
    world.broker.stop_roles()
    simulator.terminate()
    simulator.wait(10)
    log.close()
    book.close()


def test_template_reaches_every_platform_of_a_user_once(hooks: Hooks) -> None:
    addresses = hooks.add_user("all")
    template = {"id": "shipped"}
    nid = hooks.notify({"to": {"user_id": "all"}, "template": template, "data": {"order": "A1", "name": HOSTILE}})
    until(lambda: [state for state, _ in hooks.states(nid)].count("sent") == 3, 60, "all sent")
    bodies = {}
    for kind, address in addresses.items():
        (entry,) = hooks.accepted(kind, address)
        bodies[kind] = json.loads(entry["body"])
        assert entry["message_id"] in {event["message_id"] for event in hooks.events(nid)}
    said = f"Order A1 for {HOSTILE}"
    assert bodies["webhook"]["body"] == [{"type": "TextBlock", "text": said, "wrap": True}]
    assert bodies["slack"]["text"] == said.replace("<", "&lt;").replace(">", "&gt;")
    assert bodies["slack"]["body"][0]["text"] == said.replace("<!", "&lt;!")
    assert bodies["teams"]["attachments"][0]["content"]["body"] == [{"type": "TextBlock", "text": said, "wrap": True}]


def test_content_reaches_a_webhook_that_the_request_names(hooks: Hooks) -> None:
    address = hook_at("slack", hooks.url, "named")
    body = {"to": {"device_tokens": [{"platform": "slack", "token": address}]}, "content": {"text": "1 < 2"}}
    nid = hooks.notify(body)
    until(lambda: ("sent", None) in hooks.states(nid), 60, "sent")
    (entry,) = hooks.accepted("slack", address)
    assert json.loads(entry["body"]) == {"text": "1 &lt; 2"}


def test_lost_answer_is_sent_again_under_the_same_id_and_flagged(hooks: Hooks) -> None:
    address = hook_at("webhook", hooks.url, "lost")
    hooks.call("POST", "/faults", {"kind": "webhook", "mode": "drop_after_accept", "match": address, "times": 1})
    to = {"device_tokens": [{"platform": "webhook", "token": address}]}
    nid = hooks.notify({"to": to, "content": {"json": {"n": 1}}})
    until(lambda: ("sent", None) in hooks.states(nid), 60, "sent")
    first, again = hooks.accepted("webhook", address)
    assert first["message_id"] == again["message_id"]
    assert first["body"] == again["body"] == '{"n":1}'
    (sent,) = [event for event in hooks.events(nid) if event["state"] == "sent"]
    assert sent["possible_duplicate"]


def test_private_address_is_rejected_and_says_what_opens_it(hooks: Hooks) -> None:
    to = {"device_tokens": [{"platform": "webhook", "token": "https://169.254.169.254/latest/meta-data"}]}
    nid = hooks.notify({"to": to, "content": {"text": "x"}})
    until(lambda: ("rejected", "provider_rejected") in hooks.states(nid), 60, "rejected")
    (event,) = [event for event in hooks.events(nid) if event["state"] == "rejected"]
    assert "HELIOGRAPH_OUTBOUND__ALLOW" in event["detail"]


@pytest.mark.parametrize("kind", HOOK_KINDS)
def test_receiver_that_is_gone_leaves_its_users_devices(hooks: Hooks, kind: str) -> None:
    user = f"gone-{kind}"
    addresses = hooks.add_user(user)
    hooks.call("POST", "/faults", {"kind": kind, "mode": "reject", "match": addresses[kind]})
    template = {"id": "shipped"}
    nid = hooks.notify({"to": {"user_id": user}, "template": template, "data": {"order": "A1", "name": "Ada"}})
    until(lambda: ("bounced", "gone") in hooks.states(nid), 60, "bounced")

    def devices() -> set[str]:
        with psycopg.connect(hooks.world.postgres.dsn) as connection:
            row = connection.execute("SELECT devices FROM users WHERE user_id = %s", (user,)).fetchone()
        assert row is not None
        return {device["token"] for device in row[0]}

    until(lambda: devices() == set(addresses.values()) - {addresses[kind]}, 10, "the dead one gone")


def test_topics_of_the_channel_are_its_own_and_no_status_names_an_address(hooks: Hooks) -> None:
    assert hooks.world.records(dispatch_topic("webhook", "normal"))
    assert hooks.world.records(ledger_topic("webhook", "normal"))
    assert not [record for record in hooks.world.records(STATUS) if b"/hooks/" in (record.value or b"")]
