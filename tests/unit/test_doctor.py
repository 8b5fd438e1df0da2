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
    LAG_WARNING_S,
    ProbeResult,
    check_api_key,
    check_clock,
    check_completeness,
    check_connection,
    check_copies,
    check_disk,
    check_held_back,
    check_lag,
    check_migrations,
    check_no_tables,
    check_registry,
    check_schemas,
    check_topics,
    check_views,
    clickhouse_cure,
    role_of,
    target_of,
)
from console.commands.doctor_accounts import check_channels
from console.commands.doctor_running import (
    RoleReport,
    ask_roles,
    check_brakes,
    check_conditions,
    check_hooks,
    check_new_dead_letters,
    check_parked,
    check_roles,
    check_same_providers,
)
from console.commands.findings import Finding, Level
from console.commands.lag import consumer_groups
from console.commands.redaction import redacted, secrets_of
from runtime.settings import KafkaSettings, PostgresSettings, ProviderSettings, Settings, load_settings
from runtime.topics import TopicDifference
from schemas.channels import CHANNELS
from schemas.events import LANES

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
        (check_lag("g", 0, None, None), OK, "g has read everything"),
        (check_lag("g", LAG_WARNING, 4.2, 1), OK, "g is 10,000 records behind, the oldest 4 s"),
        (check_lag("g", LAG_WARNING + 1, None, None), WARNING, "g is 10,001 records behind"),
        (check_lag("g", 3, LAG_WARNING_S + 1, 2), WARNING, "g is 3 records behind, the oldest 61 s"),
        (
            check_lag("heliograph-sender-sms", 3, 1, 0),
            PROBLEM,
            "3 records behind, the oldest 1 s, and nobody is in the group",
        ),
        (check_completeness(9, 0), OK, "a sample of the 9 committed requests is there"),
        (check_completeness(52_804, 52_803), PROBLEM, "at least 52,803 of 52,804 requests"),
        (check_no_tables("heliograph", 0, 0), PROBLEM, "database heliograph has none"),
        (
            check_no_tables("heliograph", 52_804, 52_803),
            PROBLEM,
            "database heliograph has none, and 52,803 of 52,804 requests",
        ),
        (check_new_dead_letters([]), OK, "no new one in the last hour"),
        (
            check_new_dead_letters([{"stage": "sender", "reason": "retries_exhausted", "letters": 2_000}]),
            WARNING,
            "2,000 new and open ones in the last hour: 2,000 sender retries_exhausted",
        ),
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
    assert [(f.level, f.what) for f in check_roles([RoleReport("sink")] * 10, "logs", [])] == [(OK, "10 ready")]
    waits = RoleReport("sink", "joining the group", {"prices": "away"})
    found, note = check_roles([waits, RoleReport("relay")], "logs", [])
    assert (found.level, found.what) == (PROBLEM, "sink is not ready: joining the group")
    assert (note.level, note.what) == (WARNING, "sink: prices: away")
    # What follows from a store that is away is no second problem.
    assert {f.level for f in check_roles([waits], "logs", ["postgres"])} == {WARNING}


def test_one_odd_topic_is_that_topic_and_all_of_them_are_the_profile() -> None:
    def cure(count: int) -> str:
        odd = [TopicDifference(f"t{n}", "partitions", "partitions", "4", "12") for n in range(count)]
        (found,) = check_topics(odd, 29)
        return found.fix or ""

    assert "HELIOGRAPH_PARTITIONS" in cure(29)
    assert "delete it" in cure(1)
    assert "HELIOGRAPH_PARTITIONS" not in cure(1) + cure(3)


def test_wrong_password_of_clickhouse_is_the_password() -> None:
    assert "PASSWORD" in clickhouse_cure("ClickHouse refuses: Authentication failed: password is incorrect", "start it")
    assert clickhouse_cure("connection refused", "start it") == "start it"


def test_every_consumer_group_has_a_role_to_start() -> None:
    assert {role_of(group) for group in consumer_groups()} == {
        *(f"router --lane {lane}" for lane in LANES),
        *(f"sender --channel {channel}" for channel in CHANNELS),
        "sink",
        "relay",
        "hooks",
    }


def test_endpoints_that_fail_or_are_behind_are_told() -> None:
    def found(**metrics: float) -> list[str]:
        named = {
            (f"heliograph_hook_{kind}", condition): value
            for key, value in metrics.items()
            for kind, condition in [key.split("__")]
        }
        return [finding.what for finding in check_hooks([RoleReport("hooks", metrics=named)])]

    assert found(endpoints__live=3.0, endpoints__failing=0.0, lag_records__live=10.0) == []
    assert found(endpoints__failing=2.0) == ["2 endpoints of customers are failing"]
    assert found(endpoints__disabled=1.0) == ["1 endpoints of customers are disabled"]
    assert found(lag_records__live=20_000.0) == ["an endpoint of a customer is 20,000 records behind"]


def test_running_processes_are_compared_and_their_brakes_and_waits_are_told() -> None:
    def report(name: str, **metrics: float) -> RoleReport:
        return RoleReport(name, metrics={tuple(key.split("__")): value for key, value in metrics.items()})  # type: ignore[misc]

    settings = "heliograph_provider_settings__sms-1"
    sender = report(
        "sender",
        **{settings: 7.0, "heliograph_sender_parked__sms": 2_000.0, "heliograph_dead_letter_brake__sender": 1.0},
    )
    callbacks = report("callbacks", **{settings: 9.0})
    relay = report("relay", **{"heliograph_dead_devices_brake__mail-1": 1.0, "heliograph_dead_letter_brake__x": 0.0})
    (differs,) = check_same_providers({"sms-1": 7}, [sender, callbacks])
    assert differs.what == "settings of sms-1: sender, this command's settings differ from callbacks"
    assert check_same_providers({"sms-1": 7}, [sender]) == []
    assert [(f.level, f.what) for f in check_brakes([sender, relay])] == [
        (PROBLEM, "sender halted: too many bad records"),
        (WARNING, "relay believes no bounce of mail-1: too many at once"),
    ]
    (parked,) = check_parked([sender, relay])
    assert parked.what == "2,000 messages of sms wait for an account with capacity"
    down = {
        "subject": "account",
        "name": "sms-1",
        "channel": "sms",
        "detail": "401 20003",
        "since": 0,
        "next_at": 3_000,
    }
    (account,) = check_conditions([down])
    assert account.what == "sms-1 (sms) does not work: 401 20003, next probe at 1970-01-01T00:00:03.000Z"
    assert "run callbacks" in (account.fix or "")
    (halted,) = check_conditions([{**down, "subject": "router", "name": "normal", "since": 1_000}])
    assert halted.what == "the router of normal halted since 1970-01-01T00:00:01.000Z: 401 20003"


def test_stage_that_halted_is_one_problem_however_many_say_so() -> None:
    reason = "612 of the last 1000 records are unusable"
    brake = {("heliograph_dead_letter_brake", "router"): 1.0}
    router = RoleReport("router-normal", f"dead letters normal: {reason}", metrics=brake)
    rows = [
        {"subject": subject, "name": name, "channel": None, "detail": detail, "since": 0, "next_at": 0}
        for subject, name, detail in (
            ("router", "normal", reason),
            ("router", "bulk", "9 of 9"),
            ("account", "a", reason),
        )
    ]
    told = [*check_conditions(rows, [router]), *check_roles([router], "its log", ()), *check_brakes([router])]
    assert [f.what for f in told if f.level is PROBLEM] == [
        "the router of bulk halted: 9 of 9",
        f"a (None) does not work: {reason}",
        f"router-normal halted: dead letters normal: {reason}",
    ]


def test_address_that_is_none_is_a_role_that_is_not_ready() -> None:
    (report,) = ask_roles({"x": "nonsense"})
    assert "does not answer" in (report.not_ready or "")


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
    "run hooks",
    "run bounces",
    "topics apply",
    "schemas register",
    "schemas asyncapi",
    "up",
    "down",
    "demo",
    "send",
    "migrate",
    "keys create",
    "keys rotate",
    "keys revoke",
    "login",
    "logout",
    "suppressions export",
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
