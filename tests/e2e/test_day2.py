"""An operator's second day by documented commands only; the simulator's own log of accepts is the judge."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from local import stack
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


def heliograph(running: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "console.cli", *arguments, "--state-dir", str(running.state_dir)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def answer(running: Stack, *arguments: str) -> Any:
    done = heliograph(running, *arguments, "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def problems(running: Stack) -> dict[str, str]:
    """Check → what, of every problem of the doctor's."""
    done = heliograph(running, "doctor", "--json")
    found = {f["check"]: f"{f['what']}: {f['fix']}" for f in json.loads(done.stdout) if f["level"] == "problem"}
    assert done.returncode == (1 if found else 0)
    return found


def accepts(running: Stack, kind: str) -> Counter[str]:
    return Counter(entry["to"] for entry in running.get("simulator", f"/accepted?kind={kind}&limit=100000"))


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
    """The simulator signs with the old token, as a vendor does for a while: it is one of the last day."""
    before = send_sms(running, 1_000, 20)
    until(lambda: states_of(running, list(before.values())) == {"delivered": 20}, 120, "all are delivered")
    config = next(running.state_dir.rglob("heliograph.toml"))
    text = config.read_text()
    assert 'auth_token = "simulator"' in text
    config.write_text(text.replace('auth_token = "simulator"', 'auth_token = "changed"'))
    during = send_sms(running, 2_000, 20)
    until(lambda: states_of(running, list(during.values())) == {"delivered": 20}, 120, "all are delivered")
    until(lambda: "accounts" not in problems(running), 60, "every process has the changed settings")
    after = send_sms(running, 2_500, 20)
    until(lambda: states_of(running, list(after.values())) == {"delivered": 20}, 120, "all are delivered")
    reached = accepts(running, "twilio")
    assert {reached[number] for number in (*before, *during, *after)} == {1}
    config.write_text(text)


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
    assert re.search(r"has none, and (\d+) of \1 requests that the sink has stored .* sink rebuild", said), said
    assert heliograph(running, "audit").returncode == 1
    answer(running, "sink", "rebuild")
    until(lambda: problems(running) == {}, 60, "all is well again")
    assert answer(running, "replay", "list") == replays
    assert heliograph(running, "audit").returncode == 0
