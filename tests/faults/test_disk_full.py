"""No room on the disk: a process that cannot write ends or waits, and nothing is lost or doubled without a flag.

The disk is full for one process at a time: with RLIMIT_FSIZE at 0 no file of its grows any more.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import broker, until
from tests.integration.pipeline import World, profiles, requests, world

__all__ = ["broker", "world"]  # fixtures

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of another process can be set on Linux alone"),
]

COUNT = 40


def no_room(pid: int) -> None:
    """From now on no file of the process grows."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)  # type: ignore[attr-defined,unused-ignore]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))  # type: ignore[attr-defined,unused-ignore]


def flagged(world: World, ids: set[str]) -> int:
    return sum(any(event["possible_duplicate"] for event in reported) for reported in world.statuses(ids).values())


def test_sender_without_disk_space_for_its_ledger_ends_and_its_successor_continues(
    world: World, tmp_path: Path
) -> None:
    prefix = "ledger-"
    on_disk = {"HELIOGRAPH_VIEWS__BACKEND": "rocksdb", "HELIOGRAPH_VIEWS__DIRECTORY": str(tmp_path / "views")}
    world.publish(profiles(prefix, 2 * COUNT))
    world.run("router", "--lane", "normal")
    world.run("timers")  # what its end leaves in doubt is retried
    sender = world.run("sender", "--channel", "push", **on_disk)
    records, ids = requests(prefix, 2 * COUNT, channels=["push"])
    world.publish(records[:COUNT])
    until(lambda: sum(map(bool, world.settled(ids).values())) == COUNT, 90, "the first half")
    no_room(sender.pid)
    world.publish(records[COUNT:])
    assert sender.wait(60) != 0, "it went on without its ledger"
    world.run("sender", "--channel", "push", **on_disk)
    until(lambda: sum(map(bool, world.settled(ids).values())) == 2 * COUNT, 90, "all settled")
    world.broker.stop_roles()
    accepts = world.accepted("fcm", prefix)
    assert set(accepts) == {f"{prefix}{n}" for n in range(2 * COUNT)}
    assert accepts.total() - len(accepts) <= flagged(world, ids)


def test_broker_without_disk_space_stops_and_everything_continues_after_it(world: World) -> None:
    assert isinstance(world.broker.process, subprocess.Popen)
    prefix = "broker-"
    world.publish(profiles(prefix, 2 * COUNT))
    commands = (("router", "--lane", "normal"), ("timers",), ("sender", "--channel", "push"))
    roles = {command: world.run(*command) for command in commands}
    records, ids = requests(prefix, 2 * COUNT, channels=["push"])
    world.publish(records[:COUNT])
    until(lambda: len(world.accepted("fcm", prefix)) >= COUNT // 2, 90, "half of the first half")
    no_room(world.broker.process.pid)
    assert world.broker.process.wait(90) != 0
    time.sleep(3)
    world.broker.start()
    world.publish(records[COUNT:])

    def all_settled() -> bool:
        for command, role in roles.items():
            if role.poll() is not None:  # who ends for the broker's sake is started again, as a supervisor does
                roles[command] = world.run(*command)
        return sum(map(bool, world.settled(ids).values())) == 2 * COUNT

    until(all_settled, 120, "all settled")
    world.broker.stop_roles()
    accepts = world.accepted("fcm", prefix)
    assert set(accepts) == {f"{prefix}{n}" for n in range(2 * COUNT)}
    assert accepts.total() - len(accepts) <= flagged(world, ids)
