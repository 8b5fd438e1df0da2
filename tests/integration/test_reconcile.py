"""Doubts at vendors that can be asked, with the real sender, broker, timers and command: looked up, not sent a second time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from runtime import ids
from schemas.events import ChannelMessage
from schemas.topics import STATUS
from tests.integration.conftest import until
from tests.integration.pipeline import World, world
from tests.integration.test_clickhouse_schema import Store, request
from tests.support.accounts import account
from tests.support.clickhouse import Server
from tests.support.made import message as message_of
from vendors.registry import VENDORS

__all__ = ["world"]  # a fixture

pytestmark = pytest.mark.kafka

EACH = 1_000
CHANNELS = {vendor.kind: vendor.channel for vendor in VENDORS if vendor.can_look_up}


def made(kind: str, mark: str, count: int, **fields: Any) -> list[ChannelMessage]:
    """Messages of one test for accounts of a kind: `mark` is in each address."""
    now = int(time.time() * 1000)
    content: dict[str, Any] = {"text": "Your order is on its way"}
    address = f"+4915{mark}{{:03d}}"
    if CHANNELS[kind] == "email":
        content, address = {**content, "subject": "S"}, f"{mark}-{{:03d}}@example.test"
    return [
        message_of(
            message_id=str(uuid.uuid4()),
            notification_id=ids.notification_id(now, "t", f"{mark}{n}"),
            user_id=None,
            channel=CHANNELS[kind],
            address=address.format(n),
            routed_at=now,
            **{**content, **fields},
        )
        for n in range(count)
    ]


def number() -> str:
    return f"{uuid.uuid4().int % 10**5:05d}"


def test_sms_whose_first_answer_was_lost_is_taken_once_and_not_flagged(world: World, tmp_path: Path) -> None:
    """A twelfth of the look-ups fails as well, and each of those has to be made again."""
    mark = number()
    messages = made("bulksms", mark, EACH)
    mine = {message["notification_id"] for message in messages}
    text = account(
        "bulksms", tmp_path, world.port, timeout_s=5, rate_per_second=None, breaker={"failures": 10**6}, reconcile=True
    )
    with world.accounts([text]):
        world.fault(kind="bulksms", mode="drop_after_accept", match=mark)
        world.fault(kind="bulksms", mode="500", match=mark, rate=0.04, of="look_up")
        world.fault(kind="bulksms", mode="reset", match=mark, rate=0.04, of="look_up")
        world.fault(kind="bulksms", mode="slow", latency_ms=6_000, match=mark, rate=0.04, of="look_up")
        world.dispatch(messages)
        world.run("timers")
        world.run("sender", "--channel", "sms")
        until(lambda: len(world.sent_messages(mine)) == EACH, what="all are sent", timeout_s=180)
        accepted = world.accepted("bulksms", mark)
    reported = world.statuses(mine).values()
    flagged = {s["message_id"] for events in reported for s in events if s["possible_duplicate"]}
    twice = {to for to, times in accepted.items() if times > 1}
    assert len(accepted) == EACH
    assert len(twice) <= EACH // 100
    assert len(flagged) <= EACH // 100
    assert twice <= {message["address"] for message in messages if message["message_id"] in flagged}


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.clickhouse
def test_message_that_ended_unknown_is_sent_by_the_command(world: World, kind: str, tmp_path: Path) -> None:
    mark = number()
    messages = made(kind, mark, 8, delivery="at_most_once")
    for n, message in enumerate(messages):
        message["text"] = f"Your order {n} is on its way"
    mine = {message["notification_id"] for message in messages}
    ours = account(kind, tmp_path, world.port, timeout_s=5, breaker={"failures": 10**6})
    server = Server(tmp_path / "data").start()
    try:
        store = Store(server)
        with world.accounts([ours]):
            world.fault(kind=kind, mode="drop_after_accept", match=mark)
            world.dispatch(messages)
            world.run("sender", "--channel", CHANNELS[kind])
            until(
                lambda: (
                    set(map(frozenset, world.settled(mine).values())) == {frozenset({"unknown"})}
                    and len(world.settled(mine)) == 8
                ),
                what="all are unknown",
            )
            _store(world, store, mine)
            assert _states(store) == {"unknown": 8}
            world.fault(kind=kind, mode="reject", match=messages[0]["address"], of="look_up")
            tried = _reconcile(world, server, tmp_path, "--dry-run")
            assert [each["outcome"] for each in tried].count("found") == 7
            assert {state for each in world.settled(mine).values() for state in each} == {"unknown"}, (
                "nothing was published"
            )
            for _ in range(2):
                asked = _reconcile(world, server, tmp_path)
            accepted = world.get(f"/accepted?kind={kind}&limit=100000")
    finally:
        until(lambda: sum("sent" in each for each in world.settled(mine).values()) == 7, what="seven are sent")
        _store(world, store, mine)
        states, residual = _states(store), store.rows("SELECT sum(residual) FROM v_accounting")
        server.stop()
    assert {each["outcome"] for each in asked} == {"found", "not_shown"}
    assert (states, residual) == ({"sent": 7, "unknown": 1}, [(0,)])
    theirs = {each["message_id"] or each["to"]: each["provider_message_id"] for each in accepted if mark in each["to"]}
    assert len(theirs) == 8, "each was taken once"
    found = [s for events in world.statuses(mine).values() for s in events if s["state"] == "sent"]
    assert len({s["event_id"] for s in found}) == 7, "a second run says the same"
    assert not any(s["possible_duplicate"] for s in found)


def _store(world: World, store: Store, mine: set[str]) -> None:
    records = [record for record in world.read_all(STATUS) if (record.key or b"").decode() in mine]
    store.insert([*map(request, sorted(mine)), *records])


def _states(store: Store) -> dict[str, int]:
    return {state: int(count) for state, count in store.rows("SELECT state, count() FROM message_state GROUP BY state")}


def _reconcile(world: World, server: Server, folder: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "console.cli", "reconcile", "--json", "--per-second", "100"]
    ended = subprocess.run(
        [*command, "--state-dir", str(folder / "none"), *options],
        env={
            **os.environ,
            "HELIOGRAPH_CONFIG": str(world.config),
            "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": world.broker.bootstrap_servers,
            "HELIOGRAPH_CLICKHOUSE__URL": f"http://127.0.0.1:{server.port}",
        },
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found
