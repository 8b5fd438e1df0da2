"""Replay and redrive against a real broker, real roles, the engine of ClickHouse and the simulator's own log of accepts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from runtime.records import ProducerRecord
from runtime.settings import ClickHouseSettings, Settings
from runtime.status import rfc3339
from schemas.codec import codec
from schemas.topics import TEMPLATES, dispatch_topic, requests_topic
from sinks import clickhouse, schema
from sinks.completeness import compare
from tests.integration.conftest import until
from tests.integration.pipeline import World, profiles, requests, world
from tests.integration.reference_stack import Postgres, postgres
from tests.support.clickhouse import Server, free_port

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse, pytest.mark.faults]
__all__ = ["postgres", "world"]

TOPIC = requests_topic("normal")
PEOPLE = {
    **{"letters": 300, "tenk": 10_000, "fine": 40, "halt": 120, "anew": 30},
    **{"rendered": 20, "away": 20, "seen": 1, "maybe": 3, "other": 3},
    **{"stopme": 40, "behind": 5, "lostrows": 30, "relapse": 3, "mendfree": 90, "mendpin": 10, "mendnone": 2},
}
"""Users of each test by the prefix of their ids: the router has them before its first request."""


@dataclass
class Pipeline:
    """The roles from router to sink, with a mail account that never trips its breaker, and no retries."""

    world: World
    client: Client
    environment: dict[str, str]
    directory: Path

    def heliograph(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "console.cli", *arguments, "--state-dir", str(self.directory)],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.environment, **environment},
        )

    def text(self, *arguments: str, status: int = 0, **environment: str) -> str:
        process = self.heliograph(*arguments, **environment)
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, (process.returncode, out, err)
        return out if status == 0 else err

    def json(self, *arguments: str) -> Any:
        return json.loads(self.text(*arguments, "--json"))

    def rows(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.client.query(sql, parameters=parameters).result_rows]

    def states(self, nids: set[str]) -> dict[tuple[str, str], int]:
        """Messages by state and reason, as ClickHouse has them."""
        rows = self.rows(
            "SELECT state, reason, count() FROM message_state WHERE toString(notification_id) IN {ids:Array(String)}"
            " GROUP BY state, reason",
            ids=sorted(nids),
        )
        return {(state, reason): count for state, reason, count in rows}

    def residual(self) -> int:
        return int(self.rows("SELECT sum(residual) FROM v_accounting")[0][0])

    def replayed(self, nids: set[str]) -> list[tuple[str, str]]:
        """(notification, what the event says) of the events on their timelines."""
        return [
            (str(nid), detail)
            for nid, detail in self.rows(
                "SELECT notification_id, detail FROM delivery_events WHERE state = 'replayed'"
                " AND toString(notification_id) IN {ids:Array(String)}",
                ids=sorted(nids),
            )
        ]

    def make(self, prefix: str, count: int, **fields: Any) -> set[str]:
        """Publish requests to the first of PEOPLE's users of that prefix."""
        assert count <= PEOPLE[prefix]
        records, nids = requests(prefix, count, **fields)
        self.world.publish(records)
        return nids

    def fail(self, prefix: str, count: int, **fields: Any) -> set[str]:
        """Requests that all end failed, in the dead letters."""
        self.world.fault(kind="smtp", mode="500", rate=1, match=prefix)
        nids = self.make(prefix, count, **fields)
        until(
            lambda: self.states(nids) == {("failed", "retries_exhausted"): count},
            60 + count / 50,
            "every message failed",
        )
        self.wait_dead_letters(nids)
        self.world.clear_faults()
        return nids

    def wait_dead_letters(self, nids: set[str]) -> None:
        def known() -> bool:
            rows = self.rows(
                "SELECT count() FROM dead_letters WHERE toString(notification_id) IN {ids:Array(String)}",
                ids=sorted(nids),
            )
            return bool(rows[0][0] >= len(nids))

        until(known, 60, "the dead letters are in ClickHouse")

    def all_sent(self, nids: set[str], count: int | None = None) -> None:
        wanted = {("sent", ""): count or len(nids)}
        until(lambda: self.states(nids) == wanted, 60 + len(nids) / 50, "every message sent", lambda: self.states(nids))


@pytest.fixture(scope="module")
def pipeline(world: World, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("replay")
    server = Server(directory / "clickhouse").start()
    settings = ClickHouseSettings(url=f"http://127.0.0.1:{server.port}")
    schema.migrate(settings)
    config = world.config.read_text()
    world.config.write_text(config.replace("timeout_s", "breaker = {failures = 1000000, reset_s = 1}\ntimeout_s"))
    environment = {
        "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": world.broker.bootstrap_servers,
        "HELIOGRAPH_CLICKHOUSE__URL": settings.url,
        "HELIOGRAPH_POSTGRES__DSN": postgres.dsn,
        "HELIOGRAPH_SENDER__MAX_RETRIES": "0",
        "HELIOGRAPH_ROUTER__ENGINE": "loop",
        "HELIOGRAPH_SINK__FLUSH_INTERVAL_MS": "100",
        "HELIOGRAPH_CONFIG": str(world.config),
        "COLUMNS": "200",
    }
    for prefix, count in PEOPLE.items():
        world.publish(profiles(prefix, count))
    for role in (("router", "--lane", "normal"), ("sender", "--channel", "email"), ("sink",)):
        world.broker.run(*role, **environment)
    client = clickhouse.connect(settings)
    yield Pipeline(world, client, environment, directory)
    world.broker.stop_roles()
    client.close()
    assert server.stop() == 0


def redriven_by_filter_twice(pipeline: Pipeline, prefix: str, count: int, rate: int) -> None:
    started = rfc3339(int(time.time() * 1000))
    nids = pipeline.fail(prefix, count)
    assert pipeline.world.accepted("smtp", prefix) == {}
    assert pipeline.residual() == 0
    where = ("--stage", "sender", "--where", "reason = 'retries_exhausted' AND attempts = 1", "--from", started)
    counted = pipeline.json("dlq", "list", *where)
    assert [(row["stage"], row["topic"], row["reason"], row["count"]) for row in counted] == [
        ("sender", dispatch_topic("email", "normal"), "retries_exhausted", count)
    ]

    looked = pipeline.json("dlq", "redrive", *where, "--dry-run")
    assert looked["counts"] == {"try": count}
    assert {item["notification_id"] for item in looked["items"]} == nids
    listed = {message for item in looked["items"] for message in item["messages"]}
    assert pipeline.replayed(nids) == []
    assert "--yes" in pipeline.text("dlq", "redrive", *where, status=1)
    assert pipeline.world.accepted("smtp", prefix) == {}

    # The first redrive is killed after its first batch is in Kafka and before that is written down.
    process = pipeline.heliograph(
        "dlq", "redrive", *where, "--yes", "--rate", str(rate), HELIOGRAPH_CRASH_AT="after_replay_publish"
    )
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    replay = pipeline.json("replay", "list")[0]
    assert (replay["command"], replay["state"], replay["published"], replay["planned"]) == (
        "redrive",
        "running",
        0,
        count,
    )
    ended = pipeline.json("dlq", "redrive", "--resume", replay["replay_id"], "--rate", str(rate))
    assert (ended["state"], ended["published"], ended["gone"]) == ("finished", count, 0)
    pipeline.all_sent(nids)
    assert pipeline.residual() == 0

    assert pipeline.json("dlq", "list", *where) == []
    [handled] = pipeline.json("dlq", "list", *where, "--all")
    assert (handled["state"], handled["count"]) == ("sent_since", count)
    again = pipeline.json("dlq", "redrive", *where, "--all", "--yes")
    assert (again["counts"], again["items"]) == ({"sent": count}, [])
    # Resuming what is finished publishes nothing either.
    assert pipeline.json("dlq", "redrive", "--resume", replay["replay_id"])["published"] == count
    time.sleep(2)
    accepted = pipeline.world.accepted("smtp", prefix)
    assert len(accepted) == count
    assert set(accepted.values()) == {1}
    sent = {
        str(row[0])
        for row in pipeline.rows(
            "SELECT message_id FROM message_state WHERE state = 'sent' AND toString(notification_id) IN {ids:Array(String)}",
            ids=sorted(nids),
        )
    }
    assert sent == listed
    assert pipeline.residual() == 0
    events = pipeline.replayed(nids)
    assert sorted(nid for nid, _ in events) == sorted(nids)
    assert {detail.split(" by ")[0] for _, detail in events} == {f"replay {replay['replay_id']}"}


def test_what_a_broken_provider_left_is_redriven_by_filter_and_twice_is_once(pipeline: Pipeline) -> None:
    redriven_by_filter_twice(pipeline, "letters", 300, 400)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_dead_letters_are_redriven_once(pipeline: Pipeline) -> None:
    redriven_by_filter_twice(pipeline, "tenk", 10_000, 2_000)


def test_a_replay_killed_and_resumed_sends_the_failed_once_and_the_sent_never_again(pipeline: Pipeline) -> None:
    fine = pipeline.make("fine", 40)
    pipeline.all_sent(fine)
    failed = pipeline.fail("halt", 120)
    selection = ("replay", "--topic", TOPIC, "--from", "-10m", "--tenant", "t")
    where = ("--where", "reason = 'retries_exhausted' and channel = 'email' and state = 'failed'")

    looked = pipeline.json(*selection, *where, "--dry-run")
    assert looked["counts"] == {"try": 120}
    assert {item["notification_id"] for item in looked["items"]} == failed
    everything = pipeline.json(*selection, "--dry-run")
    assert everything["counts"]["try"] == 120
    assert everything["counts"]["sent"] >= 40
    table = pipeline.text(*selection, "--dry-run")
    assert "retries_exhausted" in table
    assert "120 will be tried" in table
    assert "A dry run: nothing was published." in table

    # Without a condition: everything of ten minutes, in batches of 5; killed in the middle.
    process = pipeline.heliograph(*selection, "--yes", "--rate", "20")

    def published() -> int:
        rows = pipeline.rows("SELECT published FROM replays WHERE command = 'replay' AND filter = ''")
        return int(rows[0][0]) if rows else 0

    until(lambda: published() >= 20, 90, "some batches")
    process.kill()
    process.communicate(timeout=30)
    replay = pipeline.json("replay", "list", "--limit", "1")[0]
    assert replay["state"] == "running"
    assert 20 <= replay["published"] < 120
    # Beside the interrupted one a second replay of the same, and only then the rest of the first.
    pipeline.json(*selection, *where, "--yes", "--rate", "1000")
    resumed = pipeline.json("replay", "--resume", replay["replay_id"], "--rate", "1000")
    assert (resumed["state"], resumed["published"]) == ("finished", 120)
    pipeline.all_sent(failed)
    time.sleep(2)
    for prefix, count in (("halt", 120), ("fine", 40)):
        accepted = pipeline.world.accepted("smtp", prefix)
        assert (len(accepted), set(accepted.values())) == (count, {1})
    assert pipeline.residual() == 0
    assert {nid for nid, _ in pipeline.replayed(failed)} == failed
    assert pipeline.replayed(fine) == []
    finished = pipeline.rows(
        "SELECT state, published, requested_by != '', finished_at IS NOT NULL FROM replays"
        " WHERE toString(replay_id) = {id:String}",
        id=replay["replay_id"],
    )
    assert finished == [("finished", 120, True, True)]


def test_a_resend_sends_exactly_the_selected_ones_again_and_resuming_it_does_not(pipeline: Pipeline) -> None:
    nids = pipeline.make("anew", 30)
    pipeline.all_sent(nids)
    chosen = set(sorted(nids)[:7])
    listed = ", ".join(f"'{nid}'" for nid in sorted(chosen))
    selection = ("replay", "--topic", TOPIC, "--from", "-10m", "--where", f"notification_id in ({listed})")
    assert pipeline.json(*selection, "--dry-run")["counts"] == {"sent": 7}
    assert pipeline.json(*selection, "--dry-run", "--resend")["counts"] == {"send_again": 7}
    process = pipeline.heliograph(*selection, "--resend", "--yes", HELIOGRAPH_CRASH_AT="after_replay_publish")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    replay = pipeline.json("replay", "list", "--limit", "1")[0]
    assert (replay["command"], replay["published"]) == ("resend", 0)
    pipeline.all_sent(nids, 37)
    ended = pipeline.json("replay", "--resume", replay["replay_id"])
    assert (ended["state"], ended["published"]) == ("finished", 7)
    time.sleep(2)
    assert sorted(pipeline.world.accepted("smtp", "anew").values()) == [1] * 23 + [2] * 7
    assert pipeline.residual() == 0
    # Another resend is another generation.
    assert pipeline.json(*selection, "--resend", "--yes")["items"][0]["generation"] == 2
    pipeline.all_sent(nids, 44)
    assert sorted(pipeline.world.accepted("smtp", "anew").values()) == [1] * 23 + [3] * 7
    assert {nid for nid, _ in pipeline.replayed(nids)} == chosen


def test_a_dispatch_topic_is_replayed_by_message(pipeline: Pipeline) -> None:
    started = rfc3339(int(time.time() * 1000))
    failed = pipeline.fail("rendered", 20)
    selection = (
        "replay",
        "--topic",
        dispatch_topic("email", "normal"),
        "--from",
        started,
        "--where",
        "state = 'failed'",
    )
    for count in (20, 0):
        assert len(pipeline.json(*selection, "--yes")["items"]) == count
        pipeline.all_sent(failed)
    accepted = pipeline.world.accepted("smtp", "rendered")
    assert (len(accepted), set(accepted.values())) == (20, {1})
    assert pipeline.residual() == 0


def test_redrive_after_an_outage_continues_the_count_of_attempts(pipeline: Pipeline) -> None:
    config = pipeline.directory / "away.toml"
    text = pipeline.world.config.read_text()
    config.write_text(
        text.replace(f'base_url = "{pipeline.world.simulator}"', f'base_url = "http://127.0.0.1:{free_port()}"')
    )
    assert config.read_text() != text
    start = partial(pipeline.world.broker.run, "sender", "--channel", "sms")
    away = start(**{**pipeline.environment, "HELIOGRAPH_CONFIG": str(config)})
    nids = pipeline.make("away", 20, channels=["sms"])
    until(lambda: pipeline.states(nids) == {("failed", "retries_exhausted"): 20}, 60, "every message failed")
    pipeline.wait_dead_letters(nids)
    away.terminate()
    away.wait(30)
    start(**pipeline.environment)
    where = ("--where", f"topic = '{dispatch_topic('sms', 'normal')}'")
    assert pipeline.json("dlq", "redrive", *where, "--yes")["published"] == 20
    pipeline.all_sent(nids)
    again = pipeline.json("dlq", "redrive", *where, "--all", "--yes")
    assert (again["items"], again["counts"]) == ([], {"sent": 20})
    accepted = pipeline.world.accepted("twilio", "+4915")
    assert (len(accepted), set(accepted.values())) == (20, {1})
    reported = pipeline.rows(
        "SELECT attempts, possible_duplicate, count() FROM message_state"
        " WHERE toString(notification_id) IN {ids:Array(String)} GROUP BY attempts, possible_duplicate",
        ids=sorted(nids),
    )
    assert reported == [(2, False, 20)]
    assert pipeline.residual() == 0


def test_dead_letters_that_cannot_be_redriven_are_refused_and_one_can_be_shown(pipeline: Pipeline) -> None:
    poison = ProducerRecord(TEMPLATES, b"t:poison", b"\x00nothing of ours")
    strange = ProducerRecord(TOPIC, b"t:someone", b"someone@example.org wrote this")
    pipeline.world.publish([poison, strange])
    nids = pipeline.fail("seen", 1)

    def stages() -> set[str]:
        return {row["stage"] for row in pipeline.json("dlq", "list", "--where", "reason = 'undecodable'")}

    until(lambda: stages() >= {"view", "router"}, 60, "both letters")
    refused = pipeline.json("dlq", "redrive", "--stage", "view", "--yes")
    assert refused["items"] == []
    assert set(refused["counts"]) == {"refused"}
    assert "newer value" in refused["rows"][0]["note"]
    of_router = ("dlq", "list", "--stage", "router", "--where", "reason = 'undecodable'", "--rows")
    [one] = pipeline.json(*of_router)
    shown = pipeline.json("dlq", "show", one["id"])
    assert bytes.fromhex(shown["bytes"]) == strange.value
    refused = pipeline.json("dlq", "redrive", "--where", f"dead_letter_id = '{one['id']}'", "--yes")
    assert (refused["items"], refused["counts"]) == ([], {"refused": 1})
    assert "still does not decode" in refused["rows"][0]["note"]

    # By id: --rows shows the oldest 1,000 only, and the slow test above leaves 10,000.
    [nid] = nids
    [dead_letter] = pipeline.json("dlq", "list", "--where", f"notification_id = '{nid}'", "--rows")
    hidden = pipeline.text("dlq", "show", dead_letter["id"])
    assert "seen0@example.org" not in hidden
    assert "seen0@example.org" in pipeline.text("dlq", "show", dead_letter["id"], "--reveal")


def test_replay_is_stopped_from_elsewhere_resumed_by_one_alone_and_shown_as_the_vendor_saw_it(
    pipeline: Pipeline,
) -> None:
    nids = pipeline.make("stopme", 40)
    pipeline.all_sent(nids)
    listed = ", ".join(f"'{nid}'" for nid in sorted(nids))
    selection = ("replay", "--topic", TOPIC, "--from", "-10m", "--where", f"notification_id in ({listed})", "--resend")
    process = pipeline.heliograph(*selection, "--yes", "--rate", "1")

    def replay() -> dict[str, Any]:
        found: list[dict[str, Any]] = pipeline.json("replay", "list", "--limit", "1")
        return found[0] if found else {"command": "", "published": 0}

    until(lambda: replay()["command"] == "resend" and replay()["published"] >= 3, 60, "some batches")
    replay_id = replay()["replay_id"]
    refused = pipeline.text("replay", "--resume", replay_id, status=1)
    assert "is run by" in refused
    assert f"replay stop {replay_id}" in refused
    stopped = pipeline.json("replay", "stop", replay_id)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, stopped["state"]) == (1, "stopped"), (out, err)
    done = stopped["published"]
    assert 3 <= done < 40
    assert f"stopped: {done} of 40 records; stopped by " in out
    assert "nobody runs it" in pipeline.text("replay", "stop", replay_id, status=1)

    def shown() -> tuple[dict[str, int], int]:
        found = pipeline.json("replay", "show", replay_id)
        return found["outcomes"], found["people_with_a_second_message"]

    until(lambda: shown() == ({"sent": done}, done), 60, "what was published is sent")
    assert sorted(pipeline.world.accepted("smtp", "stopme").values()) == [1] * (40 - done) + [2] * done

    # SIGTERM, as an evicted pod gets it, is a stop like any other; the rest is sent once.
    process = pipeline.heliograph("replay", "--resume", replay_id, "--rate", "1")
    until(lambda: replay()["published"] > done, 60, "it goes on")
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1, (out, err)
    assert "SIGTERM" in out
    assert (replay()["state"], replay()["error"]) == ("stopped", "SIGTERM")
    # Killed, it is nobody's as soon as its lease has ended.
    process = pipeline.heliograph("replay", "--resume", replay_id, "--rate", "1")
    before = replay()["published"]
    until(lambda: replay()["published"] > before, 60, "it goes on")
    process.kill()
    process.communicate(timeout=30)
    until(lambda: replay()["state"] == "abandoned", 60, "nobody runs it")
    assert pipeline.json("replay", "--resume", replay_id)["state"] == "finished"
    until(lambda: shown() == ({"sent": 40}, 40), 60, "everything is sent")
    assert sorted(pipeline.world.accepted("smtp", "stopme").values()) == [2] * 40
    assert pipeline.residual() == 0


def test_undecodable_letters_are_one_each_however_often_they_are_redriven_and_go_when_dismissed(
    pipeline: Pipeline,
) -> None:
    started = rfc3339(int(time.time() * 1000))
    count = 500
    pipeline.world.publish([ProducerRecord(TOPIC, b"t:junk", b"junk %d" % n) for n in range(count)])
    of_these = ("--stage", "router", "--where", "reason = 'undecodable'", "--from", started)

    def letters(*more: str) -> dict[str, int]:
        return {row["state"]: row["count"] for row in pipeline.json("dlq", "list", *of_these, *more)}

    until(lambda: letters() == {"open": count}, 60, "every record is a letter")
    ends = pipeline.world.ends(TOPIC)
    for _ in range(5):
        tried = pipeline.json("dlq", "redrive", *of_these, "--yes")
        assert (tried["counts"], tried["items"]) == ({"refused": count}, [])
    assert (letters(), letters("--all")) == ({"open": count}, {"open": count})
    assert pipeline.world.ends(TOPIC) == ends  # nothing was published
    fine = pipeline.make("behind", 5)
    pipeline.all_sent(fine)

    few = ("dlq", "dismiss", "--stage", "router", "--from", started)
    assert "--reason" in pipeline.text(*few, "--reason", "  ", "--yes", status=1)
    assert pipeline.json(*few, "--reason", "a test's junk", "--dry-run")["dismissed"] == 0
    dismissed = pipeline.json(*few, "--reason", "a test's junk", "--yes")
    assert dismissed["dismissed"] == count
    assert (letters(), letters("--all")) == ({}, {"dismissed": count})
    recorded = pipeline.json("replay", "list")[0]
    assert (recorded["replay_id"], recorded["command"], recorded["note"], recorded["planned"]) == (
        dismissed["replay_id"],
        "dismiss",
        "a test's junk",
        count,
    )


def test_letter_whose_message_fails_again_is_the_same_letter_and_open_again(pipeline: Pipeline) -> None:
    nids = pipeline.fail("relapse", 3)
    listed = ", ".join(f"'{nid}'" for nid in sorted(nids))
    of_these = ("--where", f"notification_id in ({listed})")

    def rows() -> dict[str, tuple[str, int]]:
        found = pipeline.json("dlq", "list", *of_these, "--all", "--rows")
        return {row["id"]: (row["state"], row["attempts"]) for row in found}

    before = rows()
    assert set(before.values()) == {("open", 1)}
    pipeline.world.fault(kind="smtp", mode="500", rate=1, match="relapse")
    assert pipeline.json("dlq", "redrive", *of_these, "--yes")["published"] == 3
    until(lambda: set(rows().values()) == {("failed_again", 2)}, 60, "each failed again")
    assert rows().keys() == before.keys()
    assert pipeline.json("dlq", "list", *of_these)[0]["count"] == 3
    pipeline.world.clear_faults()
    assert pipeline.json("dlq", "redrive", *of_these, "--yes")["published"] == 3
    pipeline.all_sent(nids)
    assert {state for state, _ in rows().values()} == {"sent_since"}
    redriven = pipeline.json("replay", "list")[0]
    until(lambda: pipeline.json("replay", "show", redriven["replay_id"])["outcomes"] == {"sent": 3}, 60, "its outcomes")
    assert pipeline.json("replay", "show", redriven["replay_id"])["people_with_a_second_message"] == 0
    accepted = pipeline.world.accepted("smtp", "relapse")
    assert (len(accepted), set(accepted.values())) == (3, {1})


def test_what_if_renders_with_another_version_and_sends_nothing(pipeline: Pipeline) -> None:
    nids = pipeline.make("maybe", 3)
    pipeline.all_sent(nids)
    for version, text in ((1, "T"), (2, "T {{ n }}!"), (3, "T {{ missing }}")):
        channels = {"email": {"subject": "Hi {{ n }}", "text": text}}
        template = {
            "tenant": "t",
            "template_id": "hello",
            "version": version,
            "category": "default",
            "channels": json.dumps(channels).encode(),
            "locales": b"{}",
            "variables": [],
            "updated_at": 1,
        }
        value = codec("Template").encode(template)
        pipeline.world.publish([ProducerRecord(TEMPLATES, f"t:hello:{version}".encode(), value)])
    listed = ", ".join(f"'{nid}'" for nid in sorted(nids))
    what_if = ("replay", "--topic", TOPIC, "--from", "-10m", "--where", f"notification_id in ({listed})", "--what-if")
    before = pipeline.world.accepted("smtp", "maybe")
    changed = pipeline.json(*what_if, "--template", "hello:2")
    assert (changed["changed"], changed["failed"], changed["unchanged"]) == (3, 0, 0)
    assert {d["notification_id"] for d in changed["differences"]} == nids
    assert "-T\n+T 1!" in changed["differences"][0]["diff"]
    assert pipeline.json(*what_if, "--template", "hello:1")["unchanged"] == 3
    failed = pipeline.json(*what_if, "--template", "hello:3")
    assert failed["failed"] == 3
    assert "missing_variable" in failed["differences"][0]["after"]
    assert "no template hello:9" in pipeline.text(*what_if, "--template", "hello:9", status=1)
    assert pipeline.world.accepted("smtp", "maybe") == before
    assert pipeline.replayed(nids) == []


def test_what_if_of_a_mended_template_is_what_the_replay_does_also_for_pinned_versions(pipeline: Pipeline) -> None:
    def template(version: int, text: str) -> None:
        made = {
            "tenant": "t",
            "template_id": "mended",
            "version": version,
            "category": "default",
            "channels": json.dumps({"email": {"subject": "s", "text": text}}).encode(),
            "locales": b"{}",
            "variables": [],
            "updated_at": version,
        }
        value = codec("Template").encode(made)
        keys = (b"t:mended", f"t:mended:{version}".encode())
        pipeline.world.publish([ProducerRecord(TEMPLATES, key, value) for key in keys])

    template(1, "{{ gone }}")
    started = rfc3339(int(time.time() * 1000))
    free = pipeline.make("mendfree", 90, template_id="mended")
    pinned = pipeline.make("mendpin", 10, template_id="mended", template_version=1)
    unknown = pipeline.make("mendnone", 2, template_id="mended", template_version=7)
    everyone = free | pinned
    until(lambda: pipeline.states(everyone) == {("rejected", "missing_variable"): 100}, 60, "all are rejected")
    template(2, "mended")
    of_them = ("replay", "--topic", TOPIC, "--from", started, "--template", "mended:2")
    # What was rejected as a whole has no messages, and is found by its template all the same.
    whole = ("--where", "template_id = 'mended' AND reason = 'unknown_template'")
    until(lambda: len(pipeline.json(*of_them[:5], *whole, "--dry-run")["items"]) == 2, 60, "the two of no version")
    found = pipeline.json(*of_them, "--what-if")
    assert (found["mended"], found["would_publish"], found["pinned"]) == (102, 102, 12)
    replayed = pipeline.json(*of_them, "--yes")
    assert (len(replayed["items"]), replayed["pinned"]) == (102, 12)
    pipeline.all_sent(everyone | unknown, 102)
    for prefix, count in (("mendfree", 90), ("mendpin", 10), ("mendnone", 2)):
        accepted = pipeline.world.accepted("smtp", prefix)
        assert (len(accepted), set(accepted.values())) == (count, {1})
    assert all("rendered with mended:2" in detail for _, detail in pipeline.replayed(everyone))
    recorded = next(r for r in pipeline.json("replay", "list") if r["replay_id"] == replayed["replay_id"])
    assert recorded["template"] == "mended:2"
    again = pipeline.json(*of_them, "--yes")
    assert again["items"] == []


def test_what_if_through_another_account_says_reach_and_price_and_sends_nothing(pipeline: Pipeline) -> None:
    nids = pipeline.make("other", 3, channels=["email"])
    pipeline.all_sent(nids)
    config = pipeline.directory / "two.toml"
    text = pipeline.world.config.read_text()
    priced = text.replace('name = "mail"', 'name = "mail"\nprice_per_message = "0.001"\ncurrency = "EUR"')
    second = 'name = "mail-2"\nchannel = "email"\nkind = "smtp"\nprice_per_message = "0.002"\ncurrency = "USD"\n'
    config.write_text(f"{priced}\n[[providers]]\n{second}")
    listed = ", ".join(f"'{nid}'" for nid in sorted(nids))
    what_if = ("replay", "--topic", TOPIC, "--from", "-10m", "--where", f"notification_id in ({listed})", "--what-if")
    before = pipeline.world.accepted("smtp", "other")

    def asked(*options: str) -> Any:
        return json.loads(pipeline.text(*what_if, *options, "--json", HELIOGRAPH_CONFIG=str(config)))

    reported = asked("--provider", "mail-2")["provider"]
    assert (reported["taken"], reported["same_account"], reported["not_reachable"]) == (3, 0, 0)
    assert {(m["notification_id"], m["before"], m["state"]) for m in reported["messages"]} == {
        (nid, "mail", "sent") for nid in nids
    }
    assert reported["cost_before"] == {"by_currency": {"EUR": {"amount": "0.003", "messages": 3}}, "unknown_price": 0}
    assert reported["cost_after"] == {"by_currency": {"USD": {"amount": "0.006", "messages": 3}}, "unknown_price": 0}
    assert asked("--provider", "mail")["provider"]["same_account"] == 3
    assert asked("--provider", "text")["provider"]["not_reachable"] == 3
    both = asked("--provider", "mail-2", "--template", "hello:1")
    assert (both["unchanged"], both["differences"], both["provider"]["taken"]) == (3, [], 3)
    words = pipeline.text(*what_if, "--provider", "nobody", status=1)
    assert "there are: mail (email), text (sms), push (push)" in words
    assert pipeline.world.accepted("smtp", "other") == before
    assert pipeline.replayed(nids) == []


def test_store_that_lost_everything_is_named_and_filled_again_with_replays_and_letters(pipeline: Pipeline) -> None:
    """The last test here: it empties ClickHouse."""
    nids = pipeline.make("lostrows", 30)
    pipeline.all_sent(nids)
    settings = Settings(
        kafka=pipeline.world.broker.settings,
        clickhouse=ClickHouseSettings(url=pipeline.environment["HELIOGRAPH_CLICKHOUSE__URL"]),
    )
    whole = compare(settings)
    assert whole.missing == 0
    assert whole.sampled > 0

    def seen() -> tuple[Any, ...]:
        letters = {
            row["id"]: row["state"] for row in pipeline.json("dlq", "list", "--all", "--rows", "--limit", "9999")
        }
        accounted = pipeline.rows("SELECT sum(accepted), sum(in_flight), sum(residual) FROM v_accounting")
        return pipeline.json("replay", "list", "--limit", "999"), letters, pipeline.states(nids), accounted

    before = seen()
    for table in (
        "requests_raw",
        "delivery_events_raw",
        "receipts_raw",
        "dead_letters_raw",
        "replays_raw",
        "replay_items",
    ):
        pipeline.client.command(f"TRUNCATE TABLE {table}")
    for table in ("message_states", "notification_states", "hour_sums"):
        pipeline.client.command(f"TRUNCATE TABLE {table}")
    assert compare(settings).missing >= 30
    audited = pipeline.text("audit", status=1)
    assert audited == ""  # the exit status and stdout say it; stderr is for errors
    found = json.loads(pipeline.heliograph("audit", "--json").communicate(timeout=60)[0])
    assert found["missing"] >= 30
    looked = pipeline.json("sink", "rebuild", "--dry-run")
    assert looked["dry_run"]
    assert pipeline.states(nids) == {}
    stored = pipeline.json("sink", "rebuild")["stored"]
    assert stored["requests_raw"] >= 30
    assert seen() == before
    assert compare(settings).missing == 0
