"""An operator's second day by documented commands only; the simulator's own log of accepts is the judge.

What is asked of one notification is in tests/integration/test_explain.py, the broken set-ups are in test_doctor.py, and restarts in
test_rolling_restart.py.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import clickhouse_connect
import pytest

from local import stack
from producers.publisher import Publisher
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from tests.e2e.commands import answer, begin, heliograph
from tests.e2e.conftest import Stack
from tests.integration.conftest import until
from tests.support import documents

ROOT = Path(__file__).resolve().parents[2]
INCIDENT = ROOT / "docs" / "incident.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.timeout(900),
]
has_shell = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="it is for bash and curl")


def problems(running: Stack) -> dict[str, str]:
    """Check → what, of every problem of the doctor's."""
    done = heliograph(running, "doctor", "--json")
    found = {f["check"]: f"{f['what']}: {f['fix']}" for f in json.loads(done.stdout) if f["level"] == "problem"}
    assert done.returncode == (1 if found else 0)
    return found


def accepts(running: Stack, kind: str) -> Counter[str]:
    return Counter(entry["to"] for entry in running.get("simulator", f"/accepted?kind={kind}&limit=100000"))


def simulator(running: Stack, method: str, path: str, body: object) -> Any:
    request = urllib.request.Request(running.endpoints["simulator"] + path, json.dumps(body).encode(), method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def refused_callbacks(running: Stack) -> dict[str, int]:
    """Answers to the vendor's callbacks that are neither taken nor asked for again, by status."""
    found: Counter[str] = Counter()
    for answers in running.get("simulator", "/callbacks")["answers"].values():
        found.update({code: count for code, count in answers.items() if code.startswith("4")})
    return dict(found)


@contextmanager
def without(running: Stack, *stores: str) -> Iterator[None]:
    """Stores that are down: killed, and nobody there to start them again until the block ends."""
    supervisor = running.endpoints["pids"]["supervisor"]
    before = {name: running.endpoints["pids"][name] for name in stores}
    os.kill(supervisor, signal.SIGSTOP)
    try:
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)
    until(lambda: all(running.endpoints["pids"].get(n, pid) != pid for n, pid in before.items()), 120, "they are back")
    until(lambda: not set(stores) & set(problems(running)), 120, "they answer")


@dataclass
class Callers:
    """Posts SMS to numbers of their own, `per_second` of them, until the block ends; `keyed` ones are repeated until accepted."""

    running: Stack
    first: int
    per_second: float
    keyed: bool = False
    accepted: dict[str, str] = field(default_factory=dict)
    """Number → id, of every 202."""
    others: Counter[str] = field(default_factory=Counter)
    """Other answers."""
    slowest_s: float = 0.0

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._numbers = itertools.count(self.first)
        self._began, self._lock = time.monotonic(), threading.Lock()
        self._threads = [threading.Thread(target=self._call) for _ in range(32 if self.keyed else 8)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        while True:
            with self._lock:
                n = next(self._numbers)
            due = self._began + (n - self.first) / self.per_second
            if self._ended.wait(max(0.0, due - time.monotonic())):
                return
            number = f"+4915112{n:06d}"
            headers = {"Idempotency-Key": f"day2-{number}"} if self.keyed else {}
            status = 0
            while status != 202:
                began = time.monotonic()
                try:
                    status, body, answered = self.running.call(
                        "POST", "/v1/notifications", {"to": {"phone": number}, "content": {"text": "x"}}, headers
                    )
                except (OSError, http.client.HTTPException) as exc:
                    status, body, answered = 0, None, {}
                    self.others[type(exc).__name__] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                if status == 202:
                    self.accepted[number] = body["id"]
                elif status:
                    self.others[str(status)] += 1
                if status != 202 and not self.keyed:
                    break
                if status != 202:
                    time.sleep(float(answered.get("retry-after", "1")))


def all_delivered(running: Stack, sent: dict[str, str], timeout_s: float = 180) -> None:
    """Every one is reported delivered, and the vendor's log has each once."""
    ids = list(sent.values())
    until(
        lambda: states_of(running, ids) == {"delivered": len(ids)},
        timeout_s,
        f"all {len(ids)} are delivered",
        lambda: states_of(running, ids),
    )
    reached = accepts(running, "twilio")
    assert Counter(reached[number] for number in sent) == {1: len(sent)}


def publish_sms(running: Stack, first: int, count: int) -> dict[str, str]:
    """As many at once, by the library for services; number → id."""
    numbers = [f"+4915112{n:06d}" for n in range(first, first + count)]
    with Publisher(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), tenant="default") as publisher:
        ids = publisher.publish_many({"to": {"phone": number}, "content": {"text": "x"}} for number in numbers)
    return dict(zip(numbers, ids, strict=True))


@contextmanager
def account_settings(running: Stack) -> Iterator[Path]:
    """The file of the accounts, as it was again afterwards; the vendor takes any token again."""
    config = next(running.state_dir.rglob("heliograph.toml"))
    text = config.read_text()
    try:
        yield config
    finally:
        config.write_text(text)
        simulator(running, "PUT", "/twilio/auth_tokens", [])
        until(lambda: "accounts" not in problems(running), 120, "every process has the settings as they were")


def send_sms(running: Stack, first: int, count: int) -> dict[str, str]:
    """Number → id of notifications to numbers of their own."""
    sent = {}
    for n in range(first, first + count):
        number = f"+4915112{n:06d}"
        status, body, _ = running.call("POST", "/v1/notifications", {"to": {"phone": number}, "content": {"text": "x"}})
        assert status == 202
        sent[number] = body["id"]
    return sent


def states_of(running: Stack, ids: list[str]) -> Counter[str]:
    rows = running.query(
        "SELECT state, count() FROM message_state WHERE toString(notification_id) IN {ids:Array(String)} GROUP BY state",
        ids=ids,
    )
    return Counter({str(state): int(count) for state, count in rows})


@has_shell
def test_first_hour_of_an_incident_is_as_its_page_says(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    parts = documents.blocks(INCIDENT, *documents.RUNNABLE)
    try:
        done = documents.run(documents.script(parts), tmp_path, 800)
    finally:
        stack.down(tmp_path / ".heliograph")
    seen = documents.outputs(done.stdout)
    for block, output in zip(parts, seen, strict=False):
        missing = documents.unseen(block.shown, output)
        assert missing is None, f"line {block.line} shows {missing!r}, but one sees:\n{output}"
    assert done.returncode == 0, f"the block in line {parts[len(seen) - 1].line} failed:\n{seen[-1]}"
    assert len(seen) == len(parts)


def test_credential_changed_under_load_reaches_sender_and_callbacks_and_every_report_is_taken(running: Stack) -> None:
    refused = refused_callbacks(running)
    with account_settings(running) as config, Callers(running, 10_000, 20) as callers:
        until(lambda: len(callers.accepted) > 60, 60, "some are sent with the old token")
        # The vendor's new token is valid beside the old one for a while.
        simulator(running, "PUT", "/twilio/auth_tokens", ["simulator", "changed"])
        text = config.read_text()
        assert 'auth_token = "simulator"' in text
        config.write_text(text.replace('auth_token = "simulator"', 'auth_token = "changed"'))
        until(lambda: "accounts" not in problems(running), 120, "every process has the changed settings")
        time.sleep(1)  # requests under way end with what they began with
        simulator(running, "PUT", "/twilio/auth_tokens", ["changed"])
        there = len(callers.accepted)
        until(lambda: len(callers.accepted) > there + 60, 60, "some are sent with the new token")
        callers.__exit__(None, None, None)
        all_delivered(running, callers.accepted)
    assert callers.others == {}
    assert refused_callbacks(running) == refused


def test_what_a_wrong_credential_left_is_redriven_by_three_at_once_and_one_is_killed(running: Stack) -> None:
    with account_settings(running) as config:
        text = config.read_text()
        impatient = "breaker = {failures = 3, reset_s = 1, give_up_s = 5}\n"
        wrong = text.replace('auth_token = "simulator"', impatient + 'auth_token = "wrong"')
        config.write_text(wrong)
        simulator(running, "PUT", "/twilio/auth_tokens", ["simulator"])
        restart(running, "sender-sms")  # breakers count from its next start
        count = 2_000
        sent = publish_sms(running, 20_000, count)
        until(lambda: "401 20003" in problems(running).get("accounts", ""), 60, "the doctor names account and code")
        ids = list(sent.values())
        until(lambda: states_of(running, ids) == {"failed": count}, 120, "they are given up, probes included")
        of_these = ("--reason", "provider_account", "--where", "detail LIKE '%20003%'", "--from", "-20m")
        assert not set(sent) & set(accepts(running, "twilio"))
        config.write_text(wrong.replace('"wrong"', '"simulator"'))
        until(lambda: "accounts" not in problems(running), 120, "the account works and all have its settings")
        until(lambda: open_letters(running, *of_these) == count, 60, "each is a letter")

        before = newest_replay(running)
        killed = begin(running, "dlq", "redrive", *of_these, "--yes", "--rate", "50")
        replay_id = under_way(running, before, 200)
        killed.kill()
        killed.communicate()
        until(lambda: newest_replay(running)["state"] == "abandoned", 60, "its runner is dead")
        fresh = begin(running, "dlq", "redrive", *of_these, "--all", "--yes", "--json")
        resumed = begin(running, "replay", "--resume", replay_id, "--json")
        for process in (fresh, resumed):
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, (out, err)
            assert json.loads(out)["state"] == "finished"
        all_delivered(running, sent)
        assert open_letters(running, *of_these) == 0
        assert running.query("SELECT countIf(possible_duplicate) FROM message_state WHERE channel = 'sms'") == [(0,)]
    restart(running, "sender-sms")
    assert heliograph(running, "audit").returncode == 0


def restart(running: Stack, role: str) -> None:
    """As a supervisor does after SIGTERM."""
    pid = running.endpoints["pids"][role]
    os.kill(pid, signal.SIGTERM)
    until(lambda: running.endpoints["pids"].get(role, pid) != pid, 60, f"{role} is another process")
    until(lambda: "roles" not in problems(running), 60, "every role is ready")


def newest_replay(running: Stack) -> dict[str, Any]:
    found: list[dict[str, Any]] = answer(running, "replay", "list", "--limit", "1")
    return found[0] if found else {"replay_id": None, "published": 0, "state": ""}


def under_way(running: Stack, before: dict[str, Any], published: int) -> str:
    """The id of the replay that follows `before`, once it has published so much."""
    found: list[dict[str, Any]] = []

    def begun() -> bool:
        found[:] = [newest_replay(running)]
        return bool(found[0]["replay_id"] != before["replay_id"] and found[0]["published"] >= published)

    until(begun, 60, f"a new replay has published {published}", lambda: found)
    return str(found[0]["replay_id"])


def open_letters(running: Stack, *which: str) -> int:
    return sum(row["count"] for row in answer(running, "dlq", "list", *which))


def test_broken_template_what_if_equals_replay_for_three_thousand_of_which_three_hundred_are_pinned(
    running: Stack,
) -> None:
    def version(text: str) -> int:
        body = {"channels": {"email": {"subject": "s", "text": text}}, "publish": True}
        if text.startswith("{{"):
            status, made, _ = running.call("POST", "/v1/templates", {"id": "promo", "category": "orders", **body})
        else:
            status, made, _ = running.call("POST", "/v1/templates/promo/versions", body)
        assert status == 201, made
        return int(made["version"])

    broken = version("{{ gone }}")
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    addresses = [f"promo{n}@example.org" for n in range(3_000)]
    # Over HTTP they would be refused: a service with the library finds out later.
    with Publisher(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), tenant="default") as publisher:
        ids = publisher.publish_many(
            {"to": {"email": address}, "template": {"id": "promo"} | ({"version": broken} if n < 300 else {})}
            for n, address in enumerate(addresses)
        )
    until(lambda: states_of(running, ids) == {"rejected": 3_000}, 180, "all are rejected")
    mended = version("mended")
    of_them = ["replay", "--topic", "notify.requests.normal.v1", "--from", started, "--rate", "1000"]
    of_them += ["--template", f"promo:{mended}"]
    promised = answer(running, *of_them, "--what-if")
    assert (promised["mended"], promised["would_publish"], promised["pinned"]) == (3_000, 3_000, 300)
    done = answer(running, *of_them, "--yes")
    assert (done["state"], done["published"], done["pinned"]) == ("finished", promised["would_publish"], 300)
    until(
        lambda: states_of(running, ids) == {"sent": promised["mended"]},
        240,
        "what was promised",
        lambda: states_of(running, ids),
    )
    reached = accepts(running, "smtp")
    assert Counter(reached[address] for address in addresses) == {1: 3_000}
    shown = answer(running, "replay", "show", done["replay_id"])
    assert (shown["outcomes"]["sent"], shown["people_with_a_second_message"]) == (3_000, 0)


def test_hour_replayed_by_mistake_reaches_nobody_twice_and_a_resend_is_stopped_from_another_terminal(
    running: Stack,
) -> None:
    sent = publish_sms(running, 30_000, 300)
    all_delivered(running, sent)
    before = accepts(running, "twilio")
    hour = ("replay", "--topic", "notify.requests.normal.v1", "--from", "-1h", "--where", "channel = 'sms'", "--yes")
    mistaken = answer(running, *hour)
    assert mistaken["items"] == []  # what was sent is not even published
    assert mistaken["counts"].get("sent", 0) >= len(sent)
    assert accepts(running, "twilio") == before

    earlier = newest_replay(running)
    other_terminal = begin(running, *hour, "--resend", "--rate", "5", "--json")
    resend = under_way(running, earlier, 10)
    began = time.monotonic()
    stopped = answer(running, "replay", "stop", resend)
    took_s = time.monotonic() - began  # two commands, and what they wait for
    out, err = other_terminal.communicate(timeout=30)
    assert (other_terminal.returncode, json.loads(out)["state"]) == (1, "stopped"), err
    twice = stopped["published"]
    assert 10 <= twice < 10 + 5 * (took_s + 10)

    def shown() -> tuple[int, int]:
        found = answer(running, "replay", "show", stopped["replay_id"])
        return found["outcomes"]["sent"], found["people_with_a_second_message"]

    until(lambda: shown() == (twice, twice), 120, "what was published is sent", shown)
    now = accepts(running, "twilio")
    assert sum((now - before).values()) == twice
    assert {now[number] for number in now - before} == {2}


def test_undecodable_records_redriven_five_times_are_one_letter_each_and_stop_no_lane(running: Stack) -> None:
    topic = "notify.requests.normal.v1"
    producer = Producer(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), client_id="junk")
    producer.publish([ProducerRecord(topic, b"t:junk", b"junk %d" % n) for n in range(500)])
    producer.close()
    of_these = ("--stage", "router", "--reason", "undecodable", "--from", "-10m")
    until(lambda: open_letters(running, *of_these) == 500, 60, "every record is a letter")
    for _ in range(5):
        tried = answer(running, "dlq", "redrive", *of_these, "--yes")
        assert (tried["counts"], tried["items"]) == ({"refused": 500}, [])
    assert open_letters(running, *of_these, "--all") == 500
    assert problems(running) == {}
    all_delivered(running, send_sms(running, 4_000, 5), 60)
    assert answer(running, "dlq", "dismiss", *of_these, "--reason", "junk of a test", "--yes")["dismissed"] == 500
    assert open_letters(running, *of_these) == 0


def test_clickhouse_away_for_a_minute_delays_no_message_and_all_is_exact_afterwards(running: Stack) -> None:
    with Callers(running, 50_000, 40) as callers:
        time.sleep(3)
        with without(running, "clickhouse"):
            time.sleep(30)
            assert problems(running).keys() == {"clickhouse"}
            numbers = list(callers.accepted)
            until(lambda: set(numbers) <= set(accepts(running, "twilio")), 60, "what was accepted meanwhile is sent")
            status, body, headers = running.call("GET", f"/v1/notifications/{callers.accepted[numbers[-1]]}")
            assert (status, "Retry-After" in headers or "retry-after" in headers) == (503, True), body
        time.sleep(3)
    assert callers.others == {}
    all_delivered(running, callers.accepted)
    until(lambda: problems(running) == {}, 60, "all is well", lambda: problems(running))
    assert heliograph(running, "audit").returncode == 0


def test_postgres_away_half_a_minute_refuses_keyed_calls_only_and_each_is_sent_once(running: Stack) -> None:
    with Callers(running, 60_000, 20) as unkeyed, Callers(running, 70_000, 5, keyed=True) as keyed:
        time.sleep(3)
        with without(running, "postgres"):
            time.sleep(20)
            assert problems(running).keys() == {"postgres"}
        time.sleep(3)
    assert unkeyed.others == {}
    assert keyed.others.keys() == {"503"}
    all_delivered(running, {**unkeyed.accepted, **keyed.accepted})
    until(lambda: problems(running) == {}, 60, "all is well", lambda: problems(running))


def test_broker_killed_under_load_loses_nobody_and_flags_who_may_have_two(running: Stack) -> None:
    with Callers(running, 80_000, 40) as callers:
        time.sleep(3)
        with without(running, "kafka"):
            pass
        time.sleep(10)
    assert callers.others.keys() <= {"503"}
    ids = list(callers.accepted.values())
    until(lambda: states_of(running, ids) == {"delivered": len(ids)}, 180, "all are delivered")
    reached = accepts(running, "twilio")
    assert all(reached[number] for number in callers.accepted)
    # A sender that lost its broker in the middle of a request ends, and its successor may send that message again: flagged.
    flagged = running.query(
        "SELECT toString(notification_id) FROM message_state WHERE possible_duplicate"
        " AND toString(notification_id) IN {ids:Array(String)}",
        ids=ids,
    )
    assert {nid for number, nid in callers.accepted.items() if reached[number] > 1} <= {nid for (nid,) in flagged}
    until(lambda: problems(running) == {}, 120, "all is well", lambda: problems(running))


def test_wiped_clickhouse_is_a_problem_with_the_number_and_one_command_brings_it_back(running: Stack) -> None:
    sent = send_sms(running, 3_000, 30)
    until(lambda: states_of(running, list(sent.values())) == {"delivered": 30}, 120, "all are delivered")
    answer(
        running, "replay", "--topic", "notify.requests.normal.v1", "--from", "-1h", "--resend", "--yes", "--rate", "500"
    )
    replays = answer(running, "replay", "list")
    assert problems(running) == {}
    endpoints = running.endpoints
    client = clickhouse_connect.get_client(dsn=endpoints["clickhouse"])
    client.command(f"DROP DATABASE {endpoints['clickhouse_database']}")
    client.close()
    missing = problems(running)
    assert missing.keys() == {"clickhouse tables"}
    said = str(missing["clickhouse tables"])
    assert re.search(r"has none, and ([\d,]+) of \1 requests that the sink has stored .* sink rebuild", said), said
    assert heliograph(running, "audit").returncode == 1
    answer(running, "sink", "rebuild")
    until(lambda: problems(running) == {}, 60, "all is well again")
    assert answer(running, "replay", "list") == replays
    assert heliograph(running, "audit").returncode == 0
