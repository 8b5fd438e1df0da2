"""The doctor's checks as pure functions; no secret in a report; help and --json on every command that reads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import SecretStr

from console import cli
from console.commands.doctor import (
    LAG_WARNING,
    Finding,
    Level,
    ProbeResult,
    check_api_key,
    check_channels,
    check_clock,
    check_connection,
    check_copies,
    check_disk,
    check_held_back,
    check_lag,
    check_migrations,
    check_readiness,
    check_registry,
    check_schemas,
    check_topics,
    check_views,
    redacted,
    secrets_of,
    target_of,
)
from runtime.settings import KafkaSettings, PostgresSettings, ProviderSettings, Settings, load_settings
from runtime.topics import TopicDifference

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM
GIB = 1 << 30


@pytest.mark.parametrize(
    ("finding", "level", "says"),
    [
        (check_connection("kafka", "k:1", ProbeResult(3.2), "start it"), OK, "k:1 answers in 3 ms"),
        (check_connection("kafka", "k:1", ProbeResult(900), "start it"), WARNING, "k:1 answers in 900 ms"),
        (check_connection("kafka", "k:1", ProbeResult(error="gone; is it running?"), "start it"), PROBLEM, "gone"),
        (check_migrations("postgres", {"1.a": "", "2.b": ""}, {"1.a": "", "2.b": ""}), OK, "up to date, 2 migrations"),
        (check_migrations("postgres", {"1.a": "", "2.b": ""}, {"1.a": ""}), PROBLEM, "2.b not applied"),
        (check_migrations("postgres", {"1.a": ""}, {"1.a": "", "2.b": ""}), WARNING, "2.b from a newer version"),
        (check_migrations("clickhouse", {"1_a": "x"}, {"1_a": "y"}), PROBLEM, "1_a ran in another form"),
        (check_migrations("clickhouse", {"1_a": "x"}, {}), PROBLEM, "1_a not applied"),
        (check_views({}, 26, superseded=False), OK, "26 as their files say"),
        (
            check_views({"v_a": "missing", "v_b": "edited"}, 26, superseded=False),
            PROBLEM,
            "v_a missing; v_b differs from its file: it was",
        ),
        (check_views({"v_a": "outdated"}, 26, superseded=False), PROBLEM, "v_a differs from its file"),
        (check_views({"v_a": "removed"}, 26, superseded=False), WARNING, "v_a has no file any more"),
        (check_views({"v_a": "removed"}, 26, superseded=True), WARNING, "v_a made by another version"),
        (check_schemas([], 11), OK, "11 records"),
        (check_schemas(["Timer and Template share the id 6"], 11), PROBLEM, "share the id 6"),
        (check_registry([]), OK, "every subject"),
        (check_registry(["a-value", "a-value", "b-value"]), PROBLEM, "a-value, b-value not as here"),
        (check_clock(100.0, 100.5, 101.0), OK, "within 1 s"),
        (check_clock(100.0, 103.5, 101.0), WARNING, "2.5 s behind"),
        (check_clock(100.0, 95.0, 101.0), WARNING, "5.0 s ahead of"),
        (check_clock(100.0, 400.0, 101.0), PROBLEM, "299.0 s behind"),
        (check_clock(100.0, 100.0, 109.0), OK, "within"),  # a slow answer is no skew
        (
            *check_held_back({("notify.requests.bulk.v1", 3): 7}),
            WARNING,
            "7 records of notify.requests.bulk.v1, partition 3",
        ),
        (check_lag("g", 0), OK, "g has read everything"),
        (check_lag("g", LAG_WARNING), OK, "g is 10,000 records behind"),
        (check_lag("g", LAG_WARNING + 1), WARNING, "g is 10,001 records behind"),
        (check_disk(Path("d"), 20 * GIB), OK, "20.0 GiB free for d"),
        (check_disk(Path("d"), 4 * GIB), WARNING, "4.0 GiB free for d"),
        (check_disk(Path("d"), GIB - 1), PROBLEM, "1.0 GiB free for d"),
        (check_api_key(404, "http://a"), OK, "http://a takes it"),
        (check_api_key(401, "http://a"), PROBLEM, "http://a refuses it (401)"),
        (check_api_key(503, "http://a"), PROBLEM, "http://a answers 503"),
        (check_api_key(None, "http://a"), PROBLEM, "http://a does not answer"),
    ],
)
def test_what_is_measured_becomes_one_finding(finding: Finding, level: Level, says: str) -> None:
    assert finding.level == level
    assert says in finding.what
    assert "\n" not in finding.what
    assert bool(finding.fix) == (level != OK)


def test_topics_are_one_finding_per_kind_of_difference_with_the_command_that_helps() -> None:
    missing = [TopicDifference(f"t{n}", "missing", "topic", "4 partitions", "missing") for n in range(5)]
    found = check_topics(
        [
            *missing,
            TopicDifference("p", "partitions", "partitions", "4", "12"),
            TopicDifference("c", "config", "a", "1", "2"),
            TopicDifference("c", "config", "b", "1", "2"),
        ],
        29,
    )
    assert [(f.level, f.what) for f in found] == [
        (PROBLEM, "t0, t1, t2 and 2 more missing"),
        (PROBLEM, "p with another number of partitions"),
        (WARNING, "c set otherwise"),
    ]
    assert found[0].fix == "run `heliograph topics apply`"
    assert [f.level for f in check_topics([], 29)] == [OK]


def test_one_copy_is_a_warning_and_several_are_fine() -> None:
    assert check_copies({"a": 3}, {"a": 2}, local=False).level == OK
    for replication, insync in (({"a": 1}, {"a": 1}), ({"a": 3}, {"a": 1}), ({"a": 3, "b": 2}, {"a": 2, "b": 1})):
        found = check_copies(replication, insync, local=False)
        assert found.level == WARNING
        assert "acks=all means one copy" in found.what
        assert "heliograph topics apply" in (found.fix or "")
        local = check_copies(replication, insync, local=True)
        assert (local.level, local.fix) == (OK, None)
        assert "acks=all means one copy" in local.what


def test_providers_and_roles_are_named_when_they_fail_and_summed_up_when_they_do_not() -> None:
    assert [f.level for f in check_channels({}, {})] == [WARNING]
    assert [(f.level, f.what) for f in check_channels({"a": "email"}, {"b": "provider b: host: Field required"})] == [
        (PROBLEM, "provider b: host: Field required"),
        (OK, "a (email)"),
    ]
    assert [(f.level, f.what) for f in check_readiness({}, 10, Path("logs"))] == [(OK, "10 ready")]
    (found,) = check_readiness({"sink": "joining the group"}, 10, Path("logs"))
    assert (found.level, found.what) == (PROBLEM, "sink is not ready: joining the group")
    assert found.fix is not None
    assert found.fix.endswith("logs/sink.log")


def test_no_secret_of_any_setting_is_in_a_finding() -> None:
    providers = [
        {"name": "p", "channel": "sms", "kind": "twilio", "auth_token": "twiliotoken"},
        {"name": "q", "channel": "email", "kind": "smtp", "password_file": "/etc/heliograph/mail"},
    ]
    settings = Settings(
        postgres=PostgresSettings(dsn=SecretStr("postgresql://u:dsn%40pass@h/d")),
        kafka=KafkaSettings(options={"sasl.password": "kafkapass", "security.protocol": "SASL_SSL"}),
        providers=tuple(ProviderSettings.model_validate(provider) for provider in providers),
    )
    secrets = set(secrets_of(settings))
    assert {"dsn%40pass", "dsn@pass", "kafkapass", "twiliotoken"} <= secrets
    assert "/etc/heliograph/mail" not in secrets  # where a secret is helps to find it
    assert "SASL_SSL" not in secrets
    reported = " ".join(sorted(secrets))
    finding = redacted(Finding(PROBLEM, "x", f"a\nb {reported}", reported), secrets)
    assert finding.what.startswith("a b ")
    assert not [secret for secret in secrets if len(secret) >= 4 and secret in f"{finding.what}{finding.fix}"]


def test_a_local_stack_is_examined_with_its_own_stores_and_providers(tmp_path: Path) -> None:
    (tmp_path / "heliograph.toml").write_text(
        '[[providers]]\nname = "s"\nchannel = "email"\nkind = "smtp"\nhost = "h"\nport = 1\nfrom_address = "a@b.c"\n'
    )
    endpoints = {
        "kafka": "k:1",
        "postgres": "postgresql://p",
        "clickhouse": "http://c:1",
        "api": "http://a",
        "clickhouse_database": "d",
        "api_key": "hg_local",
    }
    target = target_of(Settings(), tmp_path, endpoints, None, None)
    assert target.settings.kafka.bootstrap_servers == "k:1"
    assert target.settings.clickhouse.database == "d"
    assert target.settings.partitions == "local"
    assert [p.name for p in target.settings.providers] == ["s"]
    assert (target.api, target.api_key) == ("http://a", "hg_local")
    assert target_of(Settings(), tmp_path, {}, "http://b", "k").settings == Settings()


def test_the_variable_of_the_api_key_is_no_unknown_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HELIOGRAPH_API_KEY", "hg_x")
    load_settings()


# -- the tree of commands ---------------------------------------------------------------------------------------------

WRITES = {
    "run api",
    "run relay",
    "run router",
    "run timers",
    "run sender",
    "run sink",
    "run callbacks",
    "topics apply",
    "schemas register",
    "schemas asyncapi",
    "up",
    "down",
    "demo",
    "send",
    "migrate",
    "keys create",
    "keys revoke",
    "replay",
    "dlq redrive",
}
"""Commands that do something, or print a document whose form is fixed; every other one reads, for people and for programs."""


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    """Every command by its words. In a process of its own state: the commands are added once per process."""
    if not any(
        info.callback is not None and info.callback.__name__ == "doctor" for info in cli.app.registered_commands
    ):
        cli._add_commands()
    return dict(_leaves(typer.main.get_command(cli.app), ()))


def _leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield " ".join(words), command
    for name, child in children.items():
        assert child.help, f"{' '.join((*words, name))} has no help"
        yield from _leaves(child, (*words, name))


def test_every_command_and_option_has_help(commands: dict[str, Any]) -> None:
    assert {"up", "doctor", "status", "topics diff", "run sender"} <= commands.keys()
    silent = [
        f"{words} {parameter.name}"
        for words, command in commands.items()
        for parameter in command.params
        if not getattr(parameter, "help", None) and parameter.name not in ("help", "notification_id")
    ]
    assert silent == []


def test_every_command_that_reads_has_json(commands: dict[str, Any]) -> None:
    without = {
        words
        for words, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without <= WRITES


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_installed_and_completes_commands(shell: str) -> None:
    def ask(**env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; sys.argv[0] = 'heliograph'; from console.cli import main; main()"],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout

    assert "_HELIOGRAPH_COMPLETE" in ask(_HELIOGRAPH_COMPLETE=f"source_{shell}")
    words = {
        "COMP_WORDS": "heliograph do",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "heliograph do",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    assert "doctor" in ask(_HELIOGRAPH_COMPLETE=f"complete_{shell}", **words)
