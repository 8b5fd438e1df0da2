"""A key is exchanged while messages go out: with both values taken by the vendor, no message notices it."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.provider_files import LOOK_S
from schemas.events import ChannelMessage
from tests.integration.conftest import until
from tests.integration.pipeline import World, world
from tests.support.accounts import account, to_send

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.kafka

RATE = 200
"""Messages a second."""
SECONDS = 12
OLD, NEW = "an-old-token", "a-new-token"


def take(world: World, *tokens: str) -> None:
    """The vendor takes these tokens from now on, and no other; without one, any."""
    body = json.dumps(tokens).encode()
    request = urllib.request.Request(f"{world.simulator}/twilio/auth_tokens", body, method="PUT")
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture
def vendor(world: World) -> Iterator[World]:
    yield world
    take(world)


def test_key_is_exchanged_under_load_and_no_message_notices(vendor: World, tmp_path: Path) -> None:
    world, mark, now = vendor, f"{uuid.uuid4().int % 10**5:05d}", int(time.time() * 1000)
    messages: list[ChannelMessage] = [
        to_send(
            "twilio",
            message_id=str(uuid.uuid4()),
            notification_id=str(uuid.uuid4()),
            user_id=None,
            address=f"+49151{mark}{n:05d}",
            routed_at=now,
        )
        for n in range(RATE * SECONDS)
    ]
    made = {message["notification_id"] for message in messages}
    key = tmp_path / "token"
    key.write_text(OLD)
    provider = account(
        "twilio", tmp_path, world.port, auth_token_file=str(key), rate_per_second=None, max_in_flight=64, timeout_s=10
    )
    take(world, OLD, NEW)

    def publish() -> None:
        began = time.monotonic()
        for second in range(SECONDS * 10):
            time.sleep(max(0.0, began + second / 10 - time.monotonic()))
            world.dispatch(messages[second * RATE // 10 : (second + 1) * RATE // 10])

    with world.accounts([provider]):
        world.run("sender", "--channel", "sms")
        publisher = threading.Thread(target=publish)
        publisher.start()
        until(lambda: len(world.accepted("twilio", mark)) > RATE, what="messages go out")
        key.write_text(NEW)
        time.sleep(LOOK_S + 2)
        take(world, NEW)  # the old one is taken back: what goes out from now on goes out under the new one
        left = RATE * SECONDS - len(world.accepted("twilio", mark))
        publisher.join()
        until(lambda: len(world.sent_messages(made)) == len(made), what="all are sent")
    assert left > RATE, "there was a load after the exchange"
    accepted = world.accepted("twilio", mark)
    assert (len(accepted), set(accepted.values())) == (len(made), {1})
    statuses = [status for events in world.statuses(made).values() for status in events]
    assert {(s["state"], s["attempt"], s["possible_duplicate"]) for s in statuses} == {("sent", 1, False)}
