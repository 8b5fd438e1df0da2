"""More sender processes than an account takes requests at once: one says so and leaves, the others have its partitions."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.topics import DEAD_LETTERS, dispatch_topic
from tests.integration.conftest import Broker, broker, until
from tests.integration.pipeline import World, profiles, requests, world
from tests.unit.test_worker import made

__all__ = ["broker", "world"]  # fixtures

pytestmark = pytest.mark.kafka


def _ended(roles: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    return [role for role in roles if role.poll() is not None]


def test_process_without_a_slot_ends_and_the_other_sends_everything(
    world: World, broker: Broker, tmp_path: Path
) -> None:
    config = tmp_path / "heliograph.toml"
    config.write_text(world.config.read_text().replace('name = "mail"', 'name = "mail"\nmax_in_flight = 1'))
    config.write_text(config.read_text().replace("simulator/fcm", f"{world.config.parent}/simulator/fcm"))
    log = broker.directory / "sender---channel-email.log"
    roles = [broker.run("sender", "--channel", "email", HELIOGRAPH_CONFIG=str(config)) for _ in range(2)]
    until(lambda: len(_ended(roles)) == 1, what="one of two processes has ended")
    (ended,) = _ended(roles)
    assert ended.returncode == 1
    broker.roles.remove(ended)
    assert "max_in_flight of mail is less than there are email senders" in log.read_text()
    world.publish(profiles("shares-", 20))
    world.run("router", "--lane", "normal")
    records, sent = requests("shares-", 20)
    world.publish(records)
    until(lambda: len(world.sent_messages(sent)) == 20, what="all sent by the other")
    assert set(world.accepted("smtp", "shares-").values()) == {1}
    broker.stop_roles()


def test_undecodable_message_is_reported_and_its_neighbours_are_sent(world: World, broker: Broker) -> None:
    bad = made()
    value = codec("ChannelMessage").encode(bad) + b"and more"
    world.publish([ProducerRecord(dispatch_topic("email", "normal"), b"t:u", value)])
    world.publish(profiles("told-", 3))
    world.run("router", "--lane", "normal")
    world.run("sender", "--channel", "email")
    records, sent = requests("told-", 3)
    world.publish(records)
    until(lambda: len(world.sent_messages(sent)) == 3, what="its neighbours are sent")
    until(lambda: bad["notification_id"] in world.statuses({bad["notification_id"]}), what="it is told")
    (reported,) = world.statuses({bad["notification_id"]})[bad["notification_id"]]
    assert (reported["state"], reported["reason"], reported["message_id"]) == (
        "dead_lettered",
        "undecodable",
        bad["message_id"],
    )
    dead_letters = [codec("DeadLetter").decode(record.value) for record in world.read_all(DEAD_LETTERS)]
    assert [dead_letter["notification_id"] for dead_letter in dead_letters if dead_letter["value"] == value] == [
        bad["notification_id"]
    ]
    broker.stop_roles()
