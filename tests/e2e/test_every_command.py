"""Every command of `heliograph --help` on a running stack, for people and as JSON; a command without a case here fails.

In this process, so that seventy commands take seconds; tests/e2e/test_commands.py looks at what some of them do, in processes of their own.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest
import typer

from console import cli
from runtime.clock import system_clock
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from runtime.status import rfc3339
from schemas.topics import requests_topic
from tests.e2e.commands import ROOT
from tests.e2e.conftest import Stack, running
from tests.integration.conftest import until

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse, pytest.mark.timeout(300)]
__all__ = ["running"]


@dataclass
class World:
    """A stack, and the ids of what it has."""

    running: Stack
    files: Path
    sent: str
    """A notification that is settled."""
    later: list[str]
    """Notifications that wait."""
    webhook: str
    suppression: list[str]
    key_ids: list[str]
    dead_letter: str

    def file(self, value: Any) -> str:
        path = self.files / "value.json"
        path.write_text(json.dumps(value))
        return str(path)

    @property
    def templates(self) -> tuple[str, str]:
        return "--dir", str(self.files / "templates")


Arguments = Callable[[World], Sequence[str]]


@dataclass(frozen=True)
class Case:
    """How a command is called, each time anew; which exit status is right; whether it is asked which stack."""

    arguments: Arguments = lambda world: ()
    status: int = 0
    given: str = ""
    of_a_stack: bool = True


def case(*words: str, status: int = 0, of_a_stack: bool = True) -> Case:
    return Case(lambda world: words, status, of_a_stack=of_a_stack)


USER = {"email": "ada@example.org", "name": "Ada"}
MAIL = {"to": {"email": "every@example.org"}, "content": {"subject": "s", "text": "t"}}
TEMPLATE = {"id": "every", "category": "account", "channels": {"sms": {"text": "Hello {{ name }}"}}}
NO_REGISTRY = 1
"""A local stack has no Schema Registry: the command says so."""
CASES: dict[str, Case] = {
    "logs": case("sink", "--lines", "3"),
    "list": case("--limit", "3"),
    "reconcile": case("--since", "-1h"),
    "send": Case(lambda world: [world.file(MAIL)]),
    "status": Case(lambda world: [world.sent]),
    "watch": Case(lambda world: [world.sent]),
    "explain": Case(lambda world: [world.sent]),
    "cancel": Case(lambda world: [world.later.pop()]),
    "resend": Case(lambda world: [world.sent]),
    "audit": case("--from", "-1h"),
    "doctor": case(),
    "top": case("--minutes", "5"),
    "lag": case(),
    "sql": case("SELECT 1 AS one"),
    "migrate": case(),
    "login": Case(
        lambda world: [world.running.endpoints["api"], "--profile", "every"], given="the key", of_a_stack=False
    ),
    "profiles": case(of_a_stack=False),
    "whoami": case(),
    "logout": case("--profile", "every", of_a_stack=False),
    "topics list": case(of_a_stack=False),
    "topics diff": case(),
    "topics apply": case(),
    "config check": Case(lambda world: ["--file", str(world.running.state_dir / "heliograph.toml")], of_a_stack=False),
    "config show": Case(lambda world: ["--file", str(world.running.state_dir / "heliograph.toml")], of_a_stack=False),
    "providers list": case(),
    "providers test": case(),
    "users put": Case(lambda world: ["u/1", world.file(USER)]),
    "users list": case(),
    "users show": case("u/1"),
    "users preferences": case("u/1"),
    "users delete": Case(lambda world: [_user(world)]),
    "templates list": case(),
    "templates show": case("every"),
    "templates pull": Case(lambda world: world.templates),
    "templates diff": Case(lambda world: world.templates),
    "templates push": Case(lambda world: world.templates),
    "templates check": Case(lambda world: world.templates, of_a_stack=False),
    "templates versions": case("every"),
    "templates preview": Case(lambda world: ["every", world.file({"name": "Ada"}), "--channel", "sms"]),
    "templates publish": case("every", "2"),
    "templates rollback": Case(lambda world: _second_version(world)),
    "suppressions add": case("email", "stop@example.org"),
    "suppressions list": case(),
    "suppressions export": case(),
    "suppressions import": Case(
        lambda world: [world.file({"channel": "email", "address": "gone@example.org", "reason": "bounce"})]
    ),
    "suppressions remove": Case(lambda world: [world.suppression.pop()]),
    "webhooks list": case(),
    "webhooks show": Case(lambda world: [world.webhook]),
    "webhooks create": case("https://hooks.example.org/other"),
    "webhooks change": Case(lambda world: [world.webhook, "--disable"]),
    "webhooks rotate": Case(lambda world: [world.webhook]),
    "webhooks test": Case(lambda world: [world.webhook]),
    "webhooks replay": Case(lambda world: [world.webhook, "--from", rfc3339(system_clock() - 3_600_000)]),
    "webhooks delete": Case(lambda world: [_webhook(world)]),
    "keys create": case("--tenant", "default", "--name", "every"),
    "keys list": case(),
    "keys rotate": Case(lambda world: [world.key_ids[0]]),
    "keys revoke": Case(lambda world: [world.key_ids.pop()]),
    "schemas register": case(status=NO_REGISTRY, of_a_stack=False),
    "schemas check": case(status=NO_REGISTRY, of_a_stack=False),
    "schemas asyncapi": case(of_a_stack=False),
    "dlq list": case(),
    "dlq show": Case(lambda world: [world.dead_letter]),
    "dlq redrive": case("--dry-run"),
    "dlq dismiss": case("--reason", "a test", "--stage", "router", "--yes"),
    "replay": case("--topic", requests_topic("normal"), "--from", "-1h", "--dry-run"),
    "replay list": case(),
    "replay show": case("00000000-0000-4000-8000-000000000000", status=1),
    "replay stop": case("00000000-0000-4000-8000-000000000000", status=1),
    "sink rebuild": case(),
}
ELSEWHERE = {"demo": "tests/e2e/test_demo.py", "up": "README.md", "down": "README.md"}
"""Those that start and end stacks of their own; tests/e2e/test_quickstart.py executes the README."""


SILENT = {"logout", "templates diff"}
"""They say nothing where all is well."""


def _user(world: World) -> str:
    world.running.call("POST", "/v1/users", {"id": "gone"})
    return "gone"


def _second_version(world: World) -> list[str]:
    world.running.call("POST", "/v1/templates/every/publish", {"version": 2})
    return ["every"]


def _webhook(world: World) -> str:
    _, made, _ = world.running.call("POST", "/v1/webhooks", {"url": "https://hooks.example.org/gone"})
    return str(made["id"])


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something by itself."""
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children or (words and command.invoke_without_command):
        yield " ".join(words), command
    for name, child in children.items():
        yield from leaves(child, (*words, name))


if not any(info.callback is not None and info.callback.__name__ == "doctor" for info in cli.app.registered_commands):
    cli._add_commands()
COMMANDS = dict(leaves(typer.main.get_command(cli.app)))
ROLES = sorted(words for words in COMMANDS if words.startswith("run "))


@pytest.fixture(scope="module")
def world(running: Stack, tmp_path_factory: pytest.TempPathFactory) -> World:
    def made(path: str, body: Any) -> Any:
        status, answer, _ = running.call("POST", path, body)
        assert status in (200, 201, 202), answer
        return answer

    made("/v1/users", {"id": "u/1", **USER})
    made("/v1/templates", TEMPLATE)
    made("/v1/templates/every/versions", {"channels": {"sms": {"text": "Good day {{ name }}"}}, "publish": False})
    later = {**MAIL, "send_at": "2099-01-01T00:00:00Z"}
    sent = made("/v1/notifications", MAIL)["id"]
    producer = Producer(KafkaSettings(bootstrap_servers=running.endpoints["kafka"]), client_id="test")
    producer.publish([ProducerRecord(requests_topic("normal"), b"key", b"not a request")])
    producer.close()
    keys = [run("keys", "create", "--tenant", "default", *_stack(running)).out.split("_")[1] for _ in range(3)]
    until(lambda: running.call("GET", f"/v1/notifications/{sent}")[1]["status"] == "sent", 60, "it is sent")

    def dead_letters() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(run("dlq", "list", "--rows", "--json", *_stack(running)).out)
        return found

    until(lambda: bool(dead_letters()), 60, "the record is dead-lettered")
    return World(
        running,
        tmp_path_factory.mktemp("files"),
        sent,
        [made("/v1/notifications", {**later, "tags": [str(n)]})["id"] for n in range(2)],
        made("/v1/webhooks", {"url": "https://hooks.example.org/x"})["id"],
        [made("/v1/suppressions", {"channel": "email", "address": f"s{n}@example.org"})["id"] for n in range(2)],
        keys,
        str(dead_letters()[0]["id"]),
    )


def _stack(running: Stack) -> tuple[str, str]:
    return "--state-dir", str(running.state_dir)


@dataclass
class Done:
    """What a command did."""

    status: int
    out: str
    err: str


def run(*words: str, given: str = "", out: TextIO | None = None) -> Done:
    """A command, as `main` runs it; its output goes to `out` where that is given."""
    kept, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_add_commands", lambda: None)
        patch.setattr(sys, "argv", ["heliograph", *words])
        patch.setattr(sys, "stdin", io.StringIO(given))
        patch.setattr(sys, "stdout", out or kept)
        patch.setattr(sys, "stderr", err)
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        kept.flush()
        err.flush()
    texts = [stream.buffer.getvalue().decode() for stream in (kept, err)]
    return Done(status, *texts)


def test_every_command_has_a_case() -> None:
    assert set(COMMANDS) == {*CASES, *ELSEWHERE, *ROLES}
    for words, file in ELSEWHERE.items():
        text = (ROOT / file).read_text("utf-8")
        assert f"heliograph {words}" in text or f'"{words}"' in text, file


@pytest.mark.parametrize("words", CASES)
def test_command_runs_for_people_and_for_programs(
    world: World, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = CASES[words]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(world.files))
    given = world.running.endpoints["api_key"] + "\n" if it.given else ""
    has_json = any("--json" in parameter.opts for parameter in COMMANDS[words].params)
    for form in ((), ("--json",)) if has_json else ((),):
        stack = _stack(world.running) if it.of_a_stack else ()
        done = run(*words.split(), *it.arguments(world), *stack, *form, given=given)
        assert done.status == it.status, (form, done)
        assert "Traceback" not in done.err
        if it.status and not done.out:
            assert done.err.startswith("heliograph: "), done
            assert done.err.count("\n") == 1, done.err
        elif form:
            # One document, or one a line.
            lines = done.out.splitlines()
            assert lines, done
            try:
                json.loads(done.out)
            except ValueError:
                assert all(isinstance(json.loads(line), dict) for line in lines), done.out
        else:
            assert done.out or words in SILENT, done


def test_every_role_runs_in_the_stack(world: World) -> None:
    lines = []
    for pid in world.running.endpoints["pids"].values():
        raw = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        lines.append(" ".join(part.decode() for part in raw))
    missing = [words for words in ROLES if not any(f" {words}" in line for line in lines)]
    assert missing == ["run bounces"], "it needs a mailbox: tests/integration/test_bounces.py runs it"


def test_templates_pulled_and_pushed_change_nothing(world: World) -> None:
    there = ("--dir", str(world.files / "unchanged"), *_stack(world.running))
    before = {name: run("templates", "versions", name, "--json", *_stack(world.running)).out for name in ("every",)}
    assert run("templates", "pull", *there).status == 0
    pushed = json.loads(run("templates", "push", *there, "--json").out)
    assert {row["what"] for row in pushed} <= {"as it is published"}
    assert before == {name: run("templates", "versions", name, "--json", *_stack(world.running)).out for name in before}


PRINT_MUCH = [words for words in CASES if words.split()[-1] in ("list", "show", "export", "asyncapi")]
PRINT_MUCH += ["logs", "explain", "sql", "lag", "top", "audit"]


@pytest.mark.parametrize("words", PRINT_MUCH)
def test_a_pipe_that_is_closed_leaves_no_traceback(world: World, words: str) -> None:
    """As `| head -1` does; tests/e2e/test_commands.py has some in processes of their own."""
    it = CASES[words]
    if it.status or "delete" in words:
        pytest.skip("it prints one line")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as nobody:
        done = run(*words.split(), *it.arguments(world), *(_stack(world.running) if it.of_a_stack else ()), out=nobody)
        assert (done.err, done.status) == ("", 1), done
        os.dup2(os.open(os.devnull, os.O_WRONLY), nobody.fileno())  # what it still holds
