"""A sender that dies at each arrow of its loop in turn loses nothing, and flags what it repeats."""

from __future__ import annotations

import signal

import pytest

from tests.integration.conftest import broker, until
from tests.integration.pipeline import World, profiles, requests, world

__all__ = ["broker", "world"]  # fixtures

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

POINTS = ("before_facts", "before_ledger", "after_facts", "after_claim", "before_send", "after_provider_accept")
EACH = 8


def test_sender_killed_at_every_crash_point_loses_nothing(world: World) -> None:
    prefix = "arrow-"
    world.publish(profiles(prefix, EACH * len(POINTS)))
    world.run("router", "--lane", "normal")
    world.run("timers")
    once, twice = (
        requests(prefix, EACH * len(POINTS), channels=[channel], delivery=delivery)
        for channel, delivery in (("email", "at_most_once"), ("push", "at_least_once"))
    )
    for number, point in enumerate(POINTS):
        dying = [world.run("sender", "--channel", channel, HELIOGRAPH_CRASH_AT=point) for channel in ("email", "push")]
        for records, _ in (once, twice):
            world.publish(records[number * EACH : (number + 1) * EACH])
        for process in dying:
            assert process.wait(90) == -signal.SIGKILL, point
    for channel in ("email", "push"):
        world.run("sender", "--channel", channel)
    everything = once[1] | twice[1]
    until(lambda: sum(map(bool, world.settled(everything).values())) == len(everything), 90, "all settled")
    world.broker.stop_roles()

    mails, pushes = world.accepted("smtp", prefix), world.accepted("fcm", prefix)
    assert set(mails.values()) <= {1}, "at most once came twice"
    assert all(pushes[f"{prefix}{n}"] >= 1 for n in range(EACH * len(POINTS))), "at least once did not come"
    reported = world.statuses(everything)
    states = world.settled(everything)
    assert {state for nid in once[1] for state in states[nid]} <= {"sent", "unknown"}
    assert {state for nid in twice[1] for state in states[nid]} == {"sent"}
    sent_mails = sum("sent" in states[nid] for nid in once[1])
    assert sent_mails <= sum(mails.values()), "a mail is said to be sent that no provider took"
    flagged = sum(any(event["possible_duplicate"] for event in reported[nid]) for nid in twice[1])
    # One that is in doubt at two crashes comes a third time.
    assert sum(count > 1 for count in pushes.values()) <= flagged
    assert sum("unknown" in states[nid] for nid in once[1]) >= 1, "no crash left a doubt: the points were not reached"


@pytest.mark.parametrize("engine", ["faust", pytest.param("loop", marks=pytest.mark.slow)])
def test_router_killed_between_publish_and_commit_sends_everything_once(world: World, engine: str) -> None:
    prefix = f"router-{engine}-"
    world.publish(profiles(prefix, EACH))
    records, made = requests(prefix, EACH, channels=["push"])
    world.run("sender", "--channel", "push")
    engine_of = {"HELIOGRAPH_ROUTER__ENGINE": engine}
    for _ in range(2):
        dying = world.run("router", "--lane", "normal", HELIOGRAPH_CRASH_AT="router_after_publish", **engine_of)
        world.publish(records)
        assert dying.wait(90) == -signal.SIGKILL
    world.run("router", "--lane", "normal", **engine_of)
    until(lambda: sum(map(bool, world.settled(made).values())) == EACH, 90, "all settled")
    world.broker.stop_roles()
    assert world.accepted("fcm", prefix) == {f"{prefix}{n}": 1 for n in range(EACH)}
    assert not any(event["possible_duplicate"] for events in world.statuses(made).values() for event in events)
