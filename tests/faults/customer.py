"""A customer who is told of every fact during a storm: an endpoint of the stack's tenant, and what it has to have heard.

I7  every fact of an accepted notification is told, under one id, and signed
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from runtime import ids
from tests.faults.world import World
from tests.support.hook_receiver import HookReceiver, in_a_thread

NAME = "customer"
TOLD_S = 120.0


@dataclass
class Customer:
    """The endpoint, and who receives for it."""

    receiver: HookReceiver
    endpoint_id: str

    def violations(self, world: World, accepted: Container[str]) -> list[str]:
        """What does not hold, once everything was told or TOLD_S have passed."""
        wanted = {
            ids.hook_id(self.endpoint_id, event_id)
            for event_id, status in world.statuses().items()
            if status["notification_id"] in accepted
        }
        deadline = time.monotonic() + TOLD_S
        while (missing := wanted - self.receiver.ids(NAME)) and time.monotonic() < deadline:
            time.sleep(0.2)
        found = [f"the customer was not told {len(missing)} of {len(wanted)} facts"] if missing else []
        if not wanted:
            found.append("there was nothing to tell the customer")
        if self.receiver.forged:
            found.append(f"{len(self.receiver.forged)} hooks had a wrong signature")
        return found


@contextmanager
def customer(world: World) -> Iterator[Customer]:
    """One who wants every fact from now on. It is there for as long as roles may tell it."""
    places = world.places
    with in_a_thread(HookReceiver()) as receiver:
        request = urllib.request.Request(
            f"{places.api}/v1/webhooks",
            json.dumps({"url": receiver.url(NAME)}).encode(),
            {"Authorization": f"Bearer {places.api_key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            made = json.load(answer)
        receiver.secrets[NAME] = [made["secret"]]
        yield Customer(receiver, made["id"])
