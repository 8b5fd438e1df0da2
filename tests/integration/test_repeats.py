"""Doubts about a vendor that knows our ids, with the real sender, broker and timers: each message is taken once, and none is flagged."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.topics import dispatch_topic
from tests.integration.conftest import until
from tests.integration.pipeline import World, world
from tests.support.made import message as message_of

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.kafka

EACH = 500


@pytest.fixture
def onesignal(world: World) -> Iterator[World]:
    """One OneSignal app, whose breaker stays closed: this is about messages."""
    before = world.config.read_text()
    world.config.write_text(f"""
[[providers]]
name = "push"
channel = "push"
kind = "onesignal"
base_url = "{world.simulator}"
app_id = "app"
api_key = "simulator"
timeout_s = 5
breaker = {{failures = 1000000}}
""")
    yield world
    world.broker.stop_roles()
    world.clear_faults()
    world.config.write_text(before)


@pytest.mark.parametrize("killed", [False, True], ids=["lost answers", "lost answers and a kill"])
def test_push_whose_first_answer_was_lost_is_taken_once_and_not_flagged(onesignal: World, killed: bool) -> None:
    world, mark, now = onesignal, uuid.uuid4().hex[:12], int(time.time() * 1000)
    world.fault(kind="onesignal", mode="drop_after_accept", match=mark)
    records, made = [], set()
    for n in range(2 * EACH):
        message = message_of(
            message_id=str(uuid.uuid4()),
            notification_id=str(uuid.uuid4()),
            user_id=None,
            channel="push",
            platform="onesignal",
            address=f"{mark}-{n}",
            title="T",
            body="B",
            delivery="at_most_once" if n % 2 else "at_least_once",
            routed_at=now,
        )
        made.add(message["notification_id"])
        value = codec("ChannelMessage").encode(message)
        records.append(ProducerRecord(dispatch_topic("push", "normal"), f"t:{n}".encode(), value))
    world.publish(records)
    world.run("timers")
    sender = world.run("sender", "--channel", "push")
    if killed:
        until(lambda: len(world.accepted("onesignal", mark)) > EACH / 2, what="some are taken")
        sender.kill()
        sender.wait()
        world.run("sender", "--channel", "push")
    until(lambda: len(world.sent_messages(made)) == 2 * EACH, what="all are sent")
    assert set(world.accepted("onesignal", mark).values()) == {1}
    assert len(world.accepted("onesignal", mark)) == 2 * EACH
    statuses = [status for events in world.statuses(made).values() for status in events]
    assert {status["state"] for status in statuses} == {"retrying", "sent"}
    assert not any(status["possible_duplicate"] for status in statuses)
