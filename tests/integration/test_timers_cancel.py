"""Cancels raced against firing timers, claims and retries on the whole stack; the provider's own log is the judge."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas.events import states
from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]
__all__ = ["running"]

KINDS = ("scheduled", "failing", "scheduled", "immediate", "failing", "doubtful")
DECIDED = {"sent", "delivered", "cancelled", "unknown", "failed"}


def fault(running: Stack, method: str, **body: Any) -> None:
    url = running.endpoints["simulator"] + "/faults"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers, method=method)
    urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def killing(running: Stack, rng: random.Random, roles: tuple[str, ...]) -> Iterator[None]:
    """Meanwhile SIGKILL one of the roles every few seconds; the supervisor starts it again."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(5 + 3 * rng.random()):
            pid = running.endpoints["pids"].get(rng.choice(roles))
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    if roles:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if roles:
            thread.join()


def race(running: Stack, count: int, workers: int, seed: int, kill: tuple[str, ...] = ()) -> None:
    rng, run = random.Random(seed), uuid.uuid4().hex[:6]
    plans = [(n, KINDS[n % len(KINDS)], rng.random(), rng.random()) for n in range(count)]
    cases: dict[int, tuple[str, int, str | None]] = {}  # number → (id, code, status) of the cancel

    def to(number: int) -> str:
        return f"{KINDS[number % len(KINDS)]}-{run}-{number}@example.org"

    def play(plan: tuple[int, str, float, float]) -> None:
        number, kind, when, ahead = plan
        content = {"subject": "S", "text": "T"}
        body: dict[str, Any] = {"to": {"email": to(number)}, "content": content, "channels": ["email"]}
        send_at = time.time() + 2.5 + 2 * ahead
        if kind == "scheduled":
            body["send_at"] = datetime.fromtimestamp(send_at, UTC).isoformat(timespec="milliseconds")
        code, accepted, _ = running.call("POST", "/v1/notifications", body)
        assert code == 202, accepted
        if kind == "scheduled":
            cancel_at = send_at - 1.5 + 1.6 * when
        else:
            cancel_at = time.time() + when * (0.03 if kind == "immediate" else 2.5)
        time.sleep(max(0.0, cancel_at - time.time()))
        code, answer, _ = running.call("POST", f"/v1/notifications/{accepted['id']}/cancel")
        assert code in (200, 202, 409), answer
        cases[number] = accepted["id"], code, answer.get("status") if code != 409 else answer["notification_status"]

    fault(running, "POST", kind="smtp", mode="500", rate=0.6, match=f"failing-{run}-")
    fault(running, "POST", kind="smtp", mode="drop_after_accept", rate=0.6, match=f"doubtful-{run}-")
    try:
        with killing(running, random.Random(seed), kill), ThreadPoolExecutor(workers) as pool:
            list(pool.map(play, plans))
    finally:
        fault(running, "DELETE")

    def final(number: int) -> str:
        code, body, _ = running.call("GET", f"/v1/notifications/{cases[number][0]}")
        assert code == 200, body
        return str(body["status"])

    ends: dict[int, str] = {}

    def all_settled() -> bool:
        for number in set(cases) - set(ends):
            if (state := final(number)) in states().settled:
                ends[number] = state
        return len(ends) == count

    until(all_settled, 120, "every notification settled")
    log = running.get("simulator", "/accepted?kind=smtp&limit=1000000")
    accepts = Counter(entry["to"] for entry in log if run in entry["to"])
    answers = Counter(
        (KINDS[n % len(KINDS)], "confirmed" if status == "cancelled" else "too late" if code == 409 else "stored")
        for n, (_, code, status) in cases.items()
    )
    reported = f"seed {seed}: {sorted(answers.items())}, ends {Counter(ends.values())}"
    confirmed = {n for n, (_, _, status) in cases.items() if status == "cancelled"}
    assert {n for n in confirmed if accepts[to(n)]} == set(), reported
    assert {n for n in confirmed if ends[n] != "cancelled"} == set(), reported
    assert {n for n, state in ends.items() if state == "cancelled" and accepts[to(n)]} == set(), reported
    assert {n for n, state in ends.items() if state in ("sent", "delivered") and not accepts[to(n)]} == set(), reported
    assert set(ends.values()) <= DECIDED, reported
    # It was a race: both sides won some.
    assert confirmed, reported
    assert any(code == 409 for _, code, _ in cases.values()), reported


def test_a_hundred_cancels_race_the_claim_and_none_is_sent_after_it_was_confirmed(running: Stack) -> None:
    race(running, 100, 25, seed=1)


@pytest.mark.slow
def test_a_thousand_cancels_race_the_claim_and_none_is_sent_after_it_was_confirmed(running: Stack) -> None:
    race(running, 1_000, 50, seed=2)


@pytest.mark.slow
@pytest.mark.faults
def test_no_confirmed_cancel_is_sent_although_timers_router_and_sender_are_killed(running: Stack) -> None:
    race(running, 300, 30, seed=3, kill=("timers", "router-normal", "sender-email"))
