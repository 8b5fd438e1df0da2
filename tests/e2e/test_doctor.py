"""`heliograph doctor` on a stack that is well, on one whose topic somebody changed, and where nothing answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from runtime import topics
from runtime.kafka.admin import Admin
from runtime.settings import KafkaSettings
from schemas.topics import RECEIPTS
from tests.e2e.conftest import Stack
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse]


def doctor(directory: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return command(directory, "doctor", *arguments, **env)


def command(directory: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command of ours, run in a directory without settings."""
    return subprocess.run(
        [sys.executable, "-m", "console.cli", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **env},
    )


def findings(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_stack_that_is_well_has_no_problem_and_shows_no_secret(running: Stack, tmp_path: Path) -> None:
    done = doctor(tmp_path, "--state-dir", str(running.state_dir), "--json")
    found = findings(done)
    assert (done.returncode, [f for f in found if f["level"] == "problem"]) == (0, [])
    assert {f["check"] for f in found} == {
        "settings",
        "providers",
        "schemas",
        "kafka",
        "topics",
        "copies",
        "lag",
        "postgres",
        "clock",
        "postgres tables",
        "clickhouse",
        "clickhouse tables",
        "clickhouse views",
        "clickhouse rows",
        "dead letters",
        "roles",
        "disk",
        "api key",
    }
    assert running.endpoints["api_key"] not in done.stdout
    assert running.endpoints["postgres"].split(":")[2].split("@")[0] not in done.stdout
    lines = doctor(tmp_path, "--state-dir", str(running.state_dir)).stdout.splitlines()
    assert len(lines) == len(found)
    assert all(line.startswith(("ok ", "warning ")) for line in lines)


def test_a_wrong_key_and_wrong_settings_are_problems_beside_a_stack_that_is_well(
    running: Stack, tmp_path: Path
) -> None:
    done = doctor(
        tmp_path, "--state-dir", str(running.state_dir), "--json", "--api-key", "hg_no", HELIOGRAPH_KAFFKA="1"
    )
    problems = {f["check"]: f["what"] for f in findings(done) if f["level"] == "problem"}
    assert done.returncode == 1
    assert problems.keys() == {"settings", "api key"}
    assert "HELIOGRAPH_KAFFKA" in problems["settings"]
    assert "hg_no" not in done.stdout


def test_a_topic_that_somebody_set_otherwise_is_a_warning_with_the_command_that_helps(
    running: Stack, tmp_path: Path
) -> None:
    admin = Admin(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]))
    admin.alter_configs({RECEIPTS: {"retention.ms": "86400000"}})
    try:
        until(lambda: topics.diff(admin, "local") != [], 30, "the topic differs")
        done = doctor(tmp_path, "--state-dir", str(running.state_dir), "--json")
    finally:
        topics.apply(admin, "local")
    (warning,) = [f for f in findings(done) if f["check"] == "topics"]
    assert (warning["level"], warning["what"]) == ("warning", f"{RECEIPTS} set otherwise")
    assert warning["fix"] == "run `heliograph topics apply`"
    assert done.returncode == 0


def test_view_that_was_changed_is_a_problem_until_migrate_puts_it_back(running: Stack, tmp_path: Path) -> None:
    at_stack = ("--state-dir", str(running.state_dir))
    client = clickhouse_connect.get_client(
        dsn=running.endpoints["clickhouse"], database=running.endpoints["clickhouse_database"]
    )
    client.command("CREATE OR REPLACE VIEW v_slo AS SELECT 1 AS x")
    client.close()
    done = command(tmp_path, "doctor", *at_stack, "--json")
    (problem,) = [f for f in findings(done) if f["level"] == "problem"]
    assert (problem["check"], done.returncode) == ("clickhouse views", 1)
    assert problem["what"] == "v_slo differs from its file: it was changed in ClickHouse"
    assert problem["fix"] == "run `heliograph migrate`"
    assert "applied view v_slo" in command(tmp_path, "migrate", *at_stack).stdout.splitlines()
    assert "ClickHouse is up to date" in command(tmp_path, "migrate", *at_stack).stdout.splitlines()
    assert doctor(tmp_path, *at_stack).returncode == 0


def test_nothing_running_is_a_problem_for_every_store_and_no_traceback(tmp_path: Path) -> None:
    done = doctor(
        tmp_path,
        "--json",
        HELIOGRAPH_POSTGRES__DSN="postgresql://u:hush-hush@127.0.0.1:1/d",
        HELIOGRAPH_CLICKHOUSE__URL="http://u:hush-hush@127.0.0.1:1",
        HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1",
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert {f["check"] for f in findings(done) if f["level"] == "problem"} == {"kafka", "postgres", "clickhouse"}
    assert "hush-hush" not in done.stdout


def test_settings_that_make_no_sense_are_problems_and_no_traceback(tmp_path: Path) -> None:
    done = doctor(
        tmp_path,
        "--json",
        HELIOGRAPH_POSTGRES__DSN="no=such=dsn secretword",
        HELIOGRAPH_CLICKHOUSE__URL="nonsense",
        HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS="",
        HELIOGRAPH_KAFKA__OPTIONS='{"no.such.option": "1"}',
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert {f["check"] for f in findings(done) if f["level"] == "problem"} == {"kafka", "postgres", "clickhouse"}
    assert "secretword" not in done.stdout
