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
from tests.e2e.commands import ROOT, alone, answer, heliograph
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


def test_suppressions_travel_as_lines(running: Stack, tmp_path: Path) -> None:
    lines = tmp_path / "list.jsonl"
    wanted = [{"channel": "email", "address": f"gone{n}@example.org", "reason": "bounce"} for n in range(30)]
    lines.write_text("".join(json.dumps(it) + "\n" for it in wanted))
    assert answer(running, "suppressions", "import", str(lines)) == {"lines": 30, "suppressed": 30, "refused": 0}
    assert answer(running, "suppressions", "import", str(lines))["refused"] == 0
    exported = [json.loads(line) for line in words(running, "suppressions", "export").splitlines()]
    assert {it["address"] for it in wanted} <= {it["address"] for it in exported}
    again = tmp_path / "again.jsonl"
    again.write_text("".join(json.dumps(it) + "\n" for it in exported))
    assert answer(running, "suppressions", "import", str(again))["refused"] == 0
    for it in exported:  # by the API: a process for each took a minute; the command has its own test
        status, said, _ = running.call("DELETE", f"/v1/suppressions/{it['id']}", None)
        assert status == 204, said
    again.write_text('{"channel": "email", "address": "not one"}\n{"channel": "email", "address": "ok@example.org"}\n')
    done = heliograph(running, "suppressions", "import", str(again), "--keep-going")
    assert (done.returncode, done.stderr.startswith("line 1: 400 ")) == (1, True), done.stderr
    (left,) = answer(running, "suppressions", "list", "--address", "ok@example.org")
    words(running, "suppressions", "remove", left["id"])


def test_what_happens_now_is_one_screen(running: Stack) -> None:
    _, sent, _ = running.call(
        "POST", "/v1/notifications", {"to": {"email": "top@example.org"}, "content": {"subject": "s", "text": "t"}}
    )
    path = f"/v1/notifications/{sent['id']}"
    until(lambda: running.call("GET", path)[1]["status"] in ("sent", "delivered"), 60, "it is sent")
    now = answer(running, "top", "--minutes", "10")
    assert sum(row["sent"] for row in now["minutes"] if row["channel"] == "email") >= 1
    assert now["down"] == []
    assert {row["group"] for row in answer(running, "lag")} == {row["group"] for row in now["groups"]}
    assert "the last 10 minutes" in words(running, "top", "--minutes", "10")
    assert "heliograph-sink" in words(running, "lag")


def test_accounts_are_listed_and_asked(running: Stack) -> None:
    names = [row["name"] for row in answer(running, "providers", "list")]
    assert names
    assert all(row["down"] == "" for row in answer(running, "providers", "list"))
    assert [row["level"] for row in answer(running, "providers", "test")] == ["ok"] * len(names)
    assert names[0] in words(running, "providers", "test", names[0])
    assert "there is no account nobody" in refusal(running, "providers", "test", "nobody")


def test_settings_are_checked_and_shown_without_secrets(running: Stack) -> None:
    config = ("--file", str(running.state_dir / "heliograph.toml"))
    shown = alone("config", "show", *config, "--json")
    rows = {row["setting"]: row for row in json.loads(shown.stdout)}
    assert rows["clickhouse.password"]["value"] in ("", "********")
    assert rows["sender.max_retries"]["from"] == "default"
    assert alone("config", "check", *config).returncode == 0
    wrong = alone("config", "check", "--file", str(ROOT / "pyproject.toml"))
    assert (wrong.returncode, "wrong settings" in wrong.stderr) == (1, True), wrong.stderr


def test_logs_are_one_story(running: Stack) -> None:
    raw = [json.loads(line) for line in words(running, "logs", "sender-email", "--lines", "5", "--json").splitlines()]
    assert raw
    assert {line["role"] for line in raw} == {"sender-email"}
    assert "sender-email" in words(running, "logs", "sender-email", "sink")
    assert "has no log of nobody" in refusal(running, "logs", "nobody")


def test_a_login_is_kept_for_its_owner_alone(running: Stack, tmp_path: Path) -> None:
    endpoints = json.loads((running.state_dir / "endpoints.json").read_text())
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    wrong = alone("login", endpoints["api"], "--profile", "here", given="hg_nobody\n", **home)
    assert (wrong.returncode, "refuses the key" in wrong.stderr) == (1, True), wrong.stderr
    assert (
        alone("login", endpoints["api"], "--profile", "here", given=endpoints["api_key"] + "\n", **home).returncode == 0
    )
    kept = tmp_path / "heliograph" / "profiles.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    told = alone("whoami", "--profile", "here", "--json", **home)
    assert json.loads(told.stdout)["from"] == "profile here"
    assert endpoints["api_key"] not in told.stdout
    assert alone("list", "--limit", "1", "--profile", "here", **home).returncode == 0
    assert alone("logout", "--profile", "here", **home).returncode == 0
    assert json.loads(kept.read_text()) == {}


def test_templates_are_checked_without_an_api_and_rolled_back(running: Stack, tmp_path: Path) -> None:
    home = tmp_path / "parting"
    home.mkdir()
    (home / "template.json").write_text('{"category": "account"}')
    (home / "sms.text").write_text("Good bye {{ name }}")
    there = ("--dir", str(tmp_path))
    (row,) = json.loads(alone("templates", "check", *there, "--json").stdout)
    assert row == {"id": "parting", "refused": None, "variables": "name"}
    words(running, "templates", "push", *there)
    assert "there is none before it" in refusal(running, "templates", "rollback", "parting")
    (home / "sms.text").write_text("So long {{ name }}")
    assert answer(running, "templates", "push", *there)[0]["version"] == 2
    assert answer(running, "templates", "rollback", "parting")["version"] == 1
    (home / "sms.text").write_text("{{ name ")
    refused = alone("templates", "check", *there)
    assert (refused.returncode, "parting" in refused.stdout) == (1, True)


def test_what_was_sent_is_told_as_json(running: Stack, tmp_path: Path) -> None:
    good = {"to": {"email": "j@example.org"}, "content": {"subject": "s", "text": "t"}}
    done = heliograph(running, "send", written(tmp_path, [good, {"to": {}}]), "--json")
    first, second = json.loads(done.stdout)
    assert (done.returncode, first["number"], second["status"]) == (1, 1, 400)
    assert running.call("GET", f"/v1/notifications/{first['id']}")[0] == 200
