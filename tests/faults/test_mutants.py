"""Tests of the tests: a sender that breaks a promise is caught by the invariant that guards it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.faults.mutants import MUTANTS
from tests.integration.conftest import broker
from tests.integration.pipeline import World, profiles, requests, world
from tests.support.promises import broken_promises

__all__ = ["broker", "world"]  # fixtures

pytestmark = [pytest.mark.kafka, pytest.mark.faults]

COUNT = 6
TIMEOUT_S = 22.0
"""Above a session (10 s), a sender's start and the first retry."""


def run_mutant(world: World, name: str, **env: str) -> subprocess.Popen[bytes]:
    broker = world.broker
    with (broker.directory / f"mutant-{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.mutants", name, "run", "sender", "--channel", "sms"],
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": broker.settings.bootstrap_servers,
                "HELIOGRAPH_CONFIG": str(world.config),
                **env,
            },
        )
    broker.roles.append(process)
    return process


def violations(world: World, made: set[str]) -> set[str]:
    """Which promises do not hold, by the provider's log and the status topic."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until and sum(map(bool, world.settled(made).values())) < len(made):
        time.sleep(0.2)
    accepts = [entry["message_id"] for entry in world.get("/accepted?kind=twilio&limit=100000")]
    reported = world.statuses(made)
    # The router's events name the messages: it has told of each before a sender knows it.
    ids = {nid: {event["message_id"] for event in reported.get(nid, ()) if event["message_id"]} for nid in made}
    return broken_promises(reported, accepts, ids)


@pytest.mark.parametrize(
    ("name", "crash_at", "fault", "caught"),
    [
        ("unchanged", "before_send", None, set()),
        ("unchanged", None, "drop_after_accept", set()),
        ("commit_before_send", "before_send", None, {"lost"}),
        pytest.param(*("commit_past_in_flight", "before_send", None, {"lost"}), marks=pytest.mark.slow),
        pytest.param(*("missing_outcome", None, None, {"never told"}), marks=pytest.mark.slow),
        ("ledger_before_facts", "before_ledger", None, {"never told"}),
        pytest.param(
            *("retry_in_the_client", None, "drop_after_accept", {"at most once came twice", "twice without a flag"}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_broken_promise_is_caught(
    world: World, name: str, crash_at: str | None, fault: str | None, caught: set[str]
) -> None:
    assert name in MUTANTS
    prefix = f"{name}-{crash_at or fault or 'plain'}-"
    world.publish(profiles(prefix, COUNT))
    world.run("router", "--lane", "normal")
    world.run("timers")
    delivery = "at_most_once" if fault else "at_least_once"
    records, made = requests(prefix, COUNT, channels=["sms"], delivery=delivery)
    if fault:
        world.fault(kind="twilio", mode=fault)
    try:
        if crash_at:
            crashing = run_mutant(world, name, HELIOGRAPH_CRASH_AT=crash_at)
            world.publish(records)
            crashing.wait(60)
            run_mutant(world, name)
        else:
            run_mutant(world, name)
            world.publish(records)
        assert violations(world, made) == caught
    finally:
        world.clear_faults()
        world.broker.stop_roles()
