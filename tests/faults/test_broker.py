"""The broker killed ten times under load: every role works again soon after its return, and nothing is lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from producers.publisher import Publication, Publisher
from runtime.clock import system_clock
from runtime.errors import HeliographError
from runtime.kafka.admin import Admin
from runtime.settings import KafkaSettings
from tests.faults.load import Load
from tests.faults.oracle import violations
from tests.faults.storm import say
from tests.faults.world import World, world

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

KILLS = 10
WITHIN_S = 30.0
CHANNELS = ("email", "sms", "push")


def to(channel: str, mark: str) -> dict[str, Any]:
    """A recipient with a mark of six digits."""
    if channel == "email":
        return {"email": f"probe{mark}@example.org"}
    if channel == "sms":
        return {"phone": f"+49170{mark}0"}
    return {"device_tokens": [{"platform": "fcm", "token": f"probe{mark}"}]}


CONTENT = {"email": {"subject": "S", "text": "T"}, "sms": {"text": "T"}, "push": {"title": "T", "body": "B"}}


def until_the_broker_answers(settings: KafkaSettings) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            Admin(settings, timeout_s=1).partition_counts()
            return
        except HeliographError:
            assert time.monotonic() < deadline, "the broker did not come back"


def probe(made: World, publisher: Publisher, number: int) -> tuple[float, set[str]]:
    """Seconds until one message of every lane and channel is in the vendors' log, and the ids."""
    started = time.monotonic()
    ids, marks = set(), set()
    for place, lane in enumerate(("critical", "normal", "bulk")):
        for nth, channel in enumerate(CHANNELS):
            mark = f"{number:03d}{place}{nth}0"
            body = {"to": to(channel, mark), "content": CONTENT[channel], "channels": [channel], "priority": lane}
            ids.update(publisher.publish_many([Publication(body)]))
            marks.add(mark)
    while True:
        entries = made.accepts()
        if all(any(mark in entry["to"] for entry in entries) for mark in marks):
            return time.monotonic() - started, ids
        assert time.monotonic() - started < 120, "a lane or a channel does not work again"
        time.sleep(0.2)


def test_every_role_works_again_soon_after_each_return_of_the_broker(tmp_path: Path) -> None:
    with world(tmp_path / "stack", seconds=()) as made:
        since, since_seq = system_clock(), made.accept_count()
        load = Load(lambda: made.endpoints, "broker", 6_000, 15, 1)
        load.start()
        settings = made.places.kafka
        took, probes = [], set()
        with Publisher(settings, tenant=made.endpoints["tenant"], source="probe") as publisher:
            for number in range(KILLS):
                time.sleep(3)
                made.signal("kafka", signal.SIGKILL)
                time.sleep(0.5)
                until_the_broker_answers(settings)
                seconds, ids = probe(made, publisher, number)
                took.append(seconds)
                probes |= ids
                say(f"kill {number + 1}: every lane and channel after {seconds:.1f} s")
        load.stop()
        journal = {**load.journal.accepted, **{id_: {"delivery": "at_least_once"} for id_ in probes}}
        accounting = made.settle(since, len(journal), 180, say)
        made.calm(120)
        verification = made.verification(since, since_seq, set(journal))
        assert violations(made, verification, accounting, journal, KILLS) == []
        assert max(took) < WITHIN_S, took
