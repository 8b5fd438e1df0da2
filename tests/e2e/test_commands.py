"""What would else be done with curl, by commands on a running stack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.clock import system_clock
from runtime.status import rfc3339
from tests.e2e.commands import ROOT, answer, heliograph
from tests.e2e.conftest import Stack
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse, pytest.mark.timeout(300)]


def words(running: Stack, *arguments: str) -> str:
    done = heliograph(running, *arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


def refusal(running: Stack, *arguments: str) -> str:
    """One line that says why, and exit status 1."""
    done = heliograph(running, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), (done.stdout, done.stderr)
    return done.stderr


def written(tmp_path: Path, value: Any) -> str:
    path = tmp_path / "value.json"
    path.write_text(json.dumps(value))
    return str(path)


def test_users_are_put_listed_shown_and_deleted(running: Stack, tmp_path: Path) -> None:
    profile = {"email": "ada@example.org", "name": "Ada", "locale": "de-AT"}
    assert answer(running, "users", "put", "org/42", written(tmp_path, profile))["email"] == "ada@example.org"
    assert "ada@example.org" in words(running, "users", "show", "org/42")
    assert "org/42" in {row["id"] for row in answer(running, "users", "list")}
    assert "Ada" in words(running, "users", "list")
    wanted = {"channels": {"sms": False}, "categories": {}}
    replaced = answer(running, "users", "preferences", "org/42", "--replace", written(tmp_path, wanted))
    assert replaced["channels"] == {"sms": False} == answer(running, "users", "preferences", "org/42")["channels"]
    assert answer(running, "users", "delete", "org/42") == {"deleted": "org/42"}
    assert "404" in refusal(running, "users", "show", "org/42")
    assert "is not JSON" in refusal(running, "users", "put", "u1", str(ROOT / "README.md"))


def test_templates_pulled_and_pushed_change_nothing_and_a_changed_file_is_a_version(
    running: Stack, tmp_path: Path
) -> None:
    home = tmp_path / "files"
    there = ("--dir", str(home))
    source = {
        "id": "greeting",
        "category": "account",
        "channels": {
            "email": {"subject": "Hello {{ name }}", "text": "Hello\r\n{{ name }}", "html": "<p>{{ name }}</p>"},
            "push": {"title": "Hello", "body": "{{ name }}", "data": {"screen": "home"}},
        },
        "locales": {"de": {"email": {"subject": "Hallo {{ name }}", "text": "Hallo"}}},
    }
    running.call("POST", "/v1/templates", source)
    words(running, "templates", "pull", *there)
    assert (home / "greeting" / "locales" / "de" / "email.subject").read_text() == "Hallo {{ name }}"
    assert "as it is published" in words(running, "templates", "push", *there)
    assert heliograph(running, "templates", "diff", *there).returncode == 0
    assert [row["version"] for row in answer(running, "templates", "versions", "greeting")] == [1]

    subject = home / "greeting" / "email.subject"
    subject.write_text("Good day {{ name }}")
    differs = heliograph(running, "templates", "diff", "greeting", *there)
    assert (differs.returncode, "+Good day {{ name }}" in differs.stdout) == (1, True), differs.stderr
    told = heliograph(running, "templates", "diff", *there, "--json")
    assert [(row["id"], row["file"]) for row in json.loads(told.stdout)] == [("greeting", "email.subject")]
    pushed = answer(running, "templates", "push", "greeting", *there)
    assert pushed == [{"id": "greeting", "version": 2, "what": "published"}]
    data = written(tmp_path, {"name": "Ada"})
    assert answer(running, "templates", "preview", "greeting", data, "--channel", "email")["subject"] == "Good day Ada"
    assert answer(running, "templates", "publish", "greeting", "1")["version"] == 1
    assert answer(running, "templates", "show", "greeting")["channels"] == source["channels"]
    assert "Hello {{ name }}" in words(running, "templates", "show", "greeting")

    subject.write_text("{{ name ")
    assert "400" in refusal(running, "templates", "push", "greeting", *there)
    words(running, "templates", "pull", "greeting", *there)
    assert subject.read_text() == "Hello {{ name }}"
    (home / "greeting" / "template.json").unlink()
    assert "does not hold a template" in refusal(running, "templates", "push", "greeting", *there)


def test_suppressions_are_added_listed_and_removed(running: Stack) -> None:
    made = answer(running, "suppressions", "add", "email", "Bob@Example.org", "--reason", "complaint")
    found = answer(running, "suppressions", "list", "--address", "bob@example.org")
    assert [(row["id"], row["reason"]) for row in found] == [(made["id"], "complaint")]
    assert made["id"] in words(running, "suppressions", "remove", made["id"])
    assert words(running, "suppressions", "list", "--channel", "email") == "there are no such suppressions\n"
    assert "400" in refusal(running, "suppressions", "add", "email", "not an address")


def test_notifications_are_listed_cancelled_and_sent_again(running: Stack) -> None:
    later = {"to": {"email": "c@example.org"}, "content": {"subject": "s", "text": "t"}, "tags": ["later"]}
    status, scheduled, _ = running.call(
        "POST", "/v1/notifications", {**later, "send_at": rfc3339(system_clock() + 864_000_000)}
    )
    assert status == 202, scheduled
    cancelled = answer(running, "cancel", scheduled["id"])
    assert cancelled["status"] == "cancelled"
    _, sent, _ = running.call("POST", "/v1/notifications", {**later, "tags": ["now"]})
    path = f"/v1/notifications/{sent['id']}"
    until(lambda: running.call("GET", path)[1]["status"] in ("sent", "delivered"), 60, "it is sent")
    until(lambda: len(answer(running, "list", "--tag", "now")) == 1, 60, "analytics have it")
    assert sent["id"] in words(running, "list", "--tag", "now", "--limit", "5")
    assert words(running, "list", "--tag", "nobody") == "there are no such notifications\n"
    assert answer(running, "resend", sent["id"])["id"] == sent["id"]
    until(lambda: running.call("GET", path)[1]["status"] in ("sent", "delivered"), 60, "it is sent again")
    assert "409" in refusal(running, "cancel", sent["id"])
    assert "status is one of" in refusal(running, "list", "--status", "gone")


def test_questions_in_sql_read_and_change_nothing(running: Stack) -> None:
    assert answer(running, "sql", "SELECT 1 AS one, now() > toDateTime(0) AS later") == [{"one": 1, "later": True}]
    for statement in (
        "DROP TABLE requests_raw",
        "INSERT INTO requests_raw SELECT * FROM requests_raw",
        "SELECT nonsense",
    ):
        refusal(running, "sql", statement)


def test_a_rotated_key_is_valid_beside_the_old_one(running: Stack) -> None:
    old = words(running, "keys", "create", "--tenant", "default", "--name", "shop").strip()
    key_id = old.split("_")[1]
    done = heliograph(running, "keys", "rotate", key_id)
    new = done.stdout.strip()
    assert done.returncode == 0, done.stderr
    assert f"keys revoke {key_id}" in done.stderr
    for key in (old, new):
        assert running.call("GET", "/v1/users", headers={"Authorization": f"Bearer {key}"})[0] == 200
    assert "no such key" in refusal(running, "keys", "rotate", "hg_nobody")


@pytest.mark.parametrize(
    "command", [("topics", "list"), ("users", "list"), ("sql", "SELECT number FROM numbers(200000)")]
)
def test_a_pipe_that_closes_leaves_no_traceback(running: Stack, command: tuple[str, ...]) -> None:
    line = [sys.executable, "-m", "console.cli", *command]
    line += [] if command[0] == "topics" else ["--state-dir", str(running.state_dir)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
