"""Three accounts of a channel, the first down and the second throttled: everything is sent, in the order of the accounts."""

from __future__ import annotations

import time
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import until
from tests.integration.pipeline import World, world
from tests.support.accounts import account, to_send

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.kafka

COUNT = 200
NOBODY = 9
"""A port of this machine at which nobody listens."""
ORDER = {"email": ("sendgrid", "mailgun", "ses"), "sms": ("vonage", "bulksms", "twilio")}
OWN: dict[str, dict[str, Any]] = {"twilio": {"callback_url": f"http://127.0.0.1:{NOBODY}/callbacks/twilio"}}


@pytest.mark.parametrize("channel", ORDER)
def test_first_down_and_second_throttled_everything_is_sent_in_order(
    world: World, channel: str, tmp_path: Path
) -> None:
    down, throttled, well = kinds = ORDER[channel]
    now, mark = int(time.time() * 1000), f"{uuid.uuid4().int % 10**6:06d}"
    address = {"email": f"{{}}-{mark}@example.org", "sms": f"+49151{mark}{{:04d}}"}[channel]
    messages = [
        to_send(
            well,
            message_id=str(uuid.uuid4()),
            notification_id=str(uuid.uuid4()),
            user_id=None,
            address=address.format(n),
            routed_at=now,
        )
        for n in range(COUNT)
    ]
    made = {message["notification_id"] for message in messages}
    accounts = [
        account(
            kind, tmp_path, NOBODY if kind == down else world.port, name=kind, rate_per_second=None, **OWN.get(kind, {})
        )
        for kind in kinds
    ]
    with world.accounts(accounts):
        world.fault(kind=throttled, mode="429", retry_after_s=1)
        world.run("timers")
        world.run("sender", "--channel", channel)
        # The first alone, so that it meets every account before their breakers know any better.
        world.dispatch(messages[:1])
        until(lambda: len(world.sent_messages(made)) == 1, what="the first is sent")
        world.dispatch(messages[1:])
        until(lambda: len(world.sent_messages(made)) == COUNT, what="all are sent")
    accepted = world.accepted(well, mark)
    assert (len(accepted), set(accepted.values())) == (COUNT, {1})
    assert not world.accepted(down, mark)
    assert not world.accepted(throttled, mark)
    attempts = {
        nid: [
            (each["provider"], each["state"], each["reason"]) for each in sorted(events, key=lambda it: it["attempt"])
        ]
        for nid, events in world.statuses(made).items()
    }
    whole = [(down, "failed_over", None), (throttled, "failed_over", "throttled"), (well, "sent", None)]
    assert attempts[messages[0]["notification_id"]] == whole
    for asked in attempts.values():
        assert asked[-1] == (well, "sent", None)
        places = [kinds.index(provider) for provider, _, _ in asked]
        assert all(a < b for a, b in pairwise(places)), asked
    assert not any(event["possible_duplicate"] for events in world.statuses(made).values() for event in events)
