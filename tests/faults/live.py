"""Watchers of live status while the API is killed: `python -m tests.faults.live --seed 7`.

    200 watchers, two processes of `run api`, one of them killed with -9 every 5 s for two minutes; each watcher comes back to either

Most watch a notification of their own, which goes on happening while the processes are killed; five watch all of the tenant's and go
on from their place. Ends with 0 when each has exactly the facts of `GET /{id}/events`: none is missing, no fact came in two status
events of one connection, and to those who go on from a place none came twice at all. The same seed gives the same schedule.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import stack
from runtime.clock import system_clock
from runtime.status import rfc3339
from tests.e2e.conftest import Stack
from tests.support.api_process import ApiProcess, answers
from tests.support.watching import Watcher

WIDE = 5
"""Streams of all of a tenant's notifications that a key may have."""
READY_S = 60.0
SETTLED_S = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done."""

    seed: int
    watchers: int = 200
    kills: int = 24
    every_s: float = 5.0

    @property
    def seconds(self) -> float:
        """How long processes are killed for."""
        return self.kills * self.every_s


@dataclass(slots=True)
class Told:
    """What was seen, for who reads it."""

    kills: int = 0
    facts: int = 0
    connections: int = 0
    resets: int = 0


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _send(running: Stack, number: int, at_ms: int | None) -> str:
    body: dict[str, Any] = {
        "request_id": f"live-{number}",
        "to": {"email": f"live-{number}@example.org"},
        "content": {"subject": "S", "text": "hello"},
        "channels": ["email"],
    }
    if at_ms is not None:
        body["send_at"] = rfc3339(at_ms)
    # The same id again where the process was killed before it answered.
    for _ in range(100):
        try:
            code, answer, _ = running.call("POST", "/v1/notifications", body)
        except OSError:
            code, answer = 503, None
        if code == 202:
            return str(answer["id"])
        time.sleep(0.1)
    raise AssertionError(f"notification {number} is not accepted: {code} {answer}")


def facts_of(running: Stack, nid: str) -> dict[str, Any]:
    """What analytics have of it, by id."""
    code, body, _ = running.call("GET", f"/v1/notifications/{nid}/events")
    return {entry["id"]: entry for entry in body["entries"]} if code == 200 else {}


def run(plan: Plan, running: Stack, told: Told) -> list[str]:
    """What does not hold."""
    rng = random.Random(plan.seed)
    key = running.endpoints["api_key"]
    with ApiProcess(running) as second:
        second.start()
        addresses = [running.endpoints["api"], second.url]
        assert _wait(lambda: all(map(answers, addresses)), READY_S), "the processes are not ready"

        def watch(query: str) -> Watcher:
            mine = random.Random(rng.random())
            return Watcher(lambda: f"{mine.choice(addresses)}/v1/stream{query}", key).start()

        wide = [watch("") for _ in range(min(WIDE, plan.watchers // 4))]
        assert _wait(lambda: all(watcher.last for watcher in wide), READY_S), "the tenant's streams do not begin"
        began = system_clock()
        ids, own = [], []
        for number in range(plan.watchers - len(wide)):
            # A third happens at once, the rest somewhen while processes are killed.
            at = None if number % 3 == 0 else began + round(rng.uniform(5, 5 + plan.seconds) * 1_000)
            ids.append(_send(running, number, at))
            own.append(watch(f"?notification_id={ids[-1]}&until=settled"))
        for kill in range(plan.kills):
            time.sleep(plan.every_s * rng.uniform(0.7, 1.3))
            if kill % 2:
                os.kill(running.endpoints["pids"]["api"], signal.SIGKILL)  # its supervisor starts it again
            else:
                second.start()
            told.kills += 1
        assert _wait(lambda: all(map(answers, addresses)), READY_S), "the processes are not ready again"
        faults = [
            f"{nid} is not settled: {watcher.kinds()}, refused {watcher.refused}"
            for nid, watcher in zip(ids, own, strict=True)
            if not watcher.over.wait(SETTLED_S)
        ]
        faults += _compare(running, ids, own, wide, told)
        for watcher in (*own, *wide):
            watcher.stop()
        told.connections = sum(watcher.connections for watcher in (*own, *wide))
        if told.connections <= plan.watchers:
            faults.append("no watcher was cut off")
    return faults


def _compare(
    running: Stack, ids: Sequence[str], own: Sequence[Watcher], wide: Sequence[Watcher], told: Told
) -> list[str]:
    faults, expected = [], dict[str, Any]()
    for nid, watcher in zip(ids, own, strict=True):
        if watcher.refused is not None:
            faults.append(f"{nid} was refused with {watcher.refused}")
        # Analytics are a moment behind what is live.
        _wait(lambda nid=nid, watcher=watcher: facts_of(running, nid) == watcher.facts, 15)  # type: ignore[misc]
        mine = facts_of(running, nid)
        expected |= mine
        if missing := mine.keys() - watcher.facts.keys():
            faults.append(f"{nid}: {len(missing)} of {len(mine)} facts are missing")
        if other := watcher.facts.keys() - mine.keys():
            faults.append(f"{nid}: {len(other)} facts are not its own")
        if watcher.facts != mine and not missing and not other:
            faults.append(f"{nid}: facts differ from those of GET")
        if watcher.twice:
            faults.append(f"{nid}: {len(watcher.twice)} facts came twice")
    told.facts = len(expected)
    for number, watcher in enumerate(wide):
        _wait(lambda watcher=watcher: expected.keys() <= watcher.facts.keys(), 15)  # type: ignore[misc]
        told.resets += watcher.kinds().count("reset")
        if "reset" in watcher.kinds() or "gap" in watcher.kinds():
            faults.append(f"stream {number} of the tenant did not go on from its place")
        if missing := expected.keys() - watcher.facts.keys():
            faults.append(f"stream {number} of the tenant: {len(missing)} of {len(expected)} facts are missing")
        times = Counter(one.data["event"]["id"] for one in list(watcher.sent) if one.kind == "status")
        if twice := [event for event, count in times.items() if count > 1]:
            faults.append(f"stream {number} of the tenant: {len(twice)} facts came twice")
    return faults


def say(what: str) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.live", description=__doc__)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    options = parser.parse_args(arguments)
    plan, told = Plan(options.seed, options.watchers, options.kills, options.every), Told()
    with tempfile.TemporaryDirectory(prefix="heliograph-live-") as directory:
        state_dir = Path(directory) / "stack"
        started = stack.up(state_dir, detach=True)
        began = time.monotonic()
        try:
            faults = run(plan, Stack(state_dir), told)
        finally:
            stack.down(state_dir)
            assert started.process is not None
            started.process.wait(30)
    say(
        f"{plan.watchers} watchers, {told.kills} kills of two processes in {time.monotonic() - began:.0f} s: {told.facts} facts, "
        f"{told.connections} connections, {told.resets} resets"
    )
    for fault in faults:
        say(fault)
    say("every watcher has what GET gives, nothing twice" if not faults else f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
