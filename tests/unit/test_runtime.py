"""Logs without personal data, settings with clear errors, lag and views as values, a pinned library."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from faust.transport.consumer import Consumer as LibraryConsumer

from console.commands.redaction import secrets_of
from processors.router.app import DrainingConsumer
from runtime import topics
from runtime.errors import SettingsError
from runtime.health import Health
from runtime.lag import StuckOffsets
from runtime.logs import configure_logs, get_logger
from runtime.records import ConsumerRecord
from runtime.settings import ClickHouseSettings, KafkaSettings, Settings, load_settings
from runtime.views import View
from schemas.codec import codec, iter_examples
from schemas.topics import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES, MAX_VALUE_BYTES, RECIPIENTS, catalogue
from sinks import clickhouse

CANARIES = [
    "canary@example.org",
    "+4915112345678",
    "hg_canary_0123456789abcdef",
    "s3cr3t-canary",
    "Bearer canary.token",
]


@pytest.fixture
def restored_logging() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("restored_logging")
def test_canaries_never_reach_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("test", "debug")
    log = get_logger("canary")
    log.info(
        "sent to canary@example.org",
        address="canary@example.org",
        body="s3cr3t-canary",
        api_key="s3cr3t-canary",
        nested={"email": "s3cr3t-canary", "note": "call +4915112345678"},
        raw=b"s3cr3t-canary",
    )
    logging.getLogger("library").warning("GET /x Authorization: %s key=%s", "Bearer canary.token", CANARIES[2])
    try:
        raise ValueError("bad address canary@example.org")
    except ValueError:
        log.exception("failed", correlation_id="c-1", notification_id="n-1")
    printed = capsys.readouterr().err
    for canary in CANARIES:
        assert canary not in printed
    lines = [json.loads(line) for line in printed.splitlines()]
    assert len(lines) == 3
    assert (lines[2]["correlation_id"], lines[2]["notification_id"], lines[2]["role"]) == ("c-1", "n-1", "test")


def test_library_method_that_the_drain_replaces_is_the_one_it_was_written_for() -> None:
    source = inspect.getsource(LibraryConsumer._drain_messages)
    assert hashlib.sha256(source.encode()).hexdigest() == DRAIN_SHA256, (
        "faust's Consumer._drain_messages changed: compare processors/router/app.py with it before pinning the new version"
    )
    assert DrainingConsumer._drain_messages is not LibraryConsumer._drain_messages


DRAIN_SHA256 = "44a2500309e83c630493f6828af50166ec8d96a0b3e4fb2bab735f704ae93417"


@pytest.mark.parametrize(
    ("env", "toml", "words"),
    [
        ({"HELIOGRAPH_KAKFA__BOOTSTRAP_SERVERS": "x"}, "", "HELIOGRAPH_KAKFA__BOOTSTRAP_SERVERS is not a setting"),
        ({"HELIOGRAPH_SENDER__WINDOW": "0"}, "", "sender.window .*greater than or equal to 1"),
        ({}, "[router]\nengine = 'flink'", "router.engine"),
        ({}, "[[providers]]\nname = 'a'", "providers.0.channel"),
        ({}, "unknown = 1", "unknown"),
        ({}, "x = ", "not valid TOML"),
        ({"HELIOGRAPH_CONFIG": "/does/not/exist.toml"}, None, "cannot read"),
        ({}, "[[providers]]\nname='a'\nchannel='email'\nkind='smtp'\n" * 2, "same name"),
    ],
)
def test_wrong_settings_are_one_line_that_names_them(
    env: dict[str, str], toml: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if toml is not None:
        (tmp_path / "heliograph.toml").write_text(toml)
        monkeypatch.setenv("HELIOGRAPH_CONFIG", str(tmp_path / "heliograph.toml"))
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words) as refused:
        load_settings()
    assert "\n" not in str(refused.value)


def test_environment_wins_over_the_file_and_paths_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h.toml").write_text(
        "[sender]\nwindow = 7\nmax_retries = 2\n[[providers]]\nname='p'\nchannel='push'\nkind='fcm'\ncredentials_file='k.json'\n"
    )
    monkeypatch.setenv("HELIOGRAPH_CONFIG", str(tmp_path / "h.toml"))
    monkeypatch.setenv("HELIOGRAPH_SENDER__WINDOW", "9")
    settings = load_settings()
    assert (settings.sender.window, settings.sender.max_retries) == (9, 2)
    assert settings.providers[0].model_extra == {"credentials_file": str(tmp_path / "k.json")}


def test_secrets_do_not_show() -> None:
    assert "password" not in repr(load_settings()).replace("password=SecretStr('')", "")


@pytest.mark.parametrize(
    "name",
    [
        "sasl.password",
        "ssl.key.password",
        "ssl.keystore.password",
        "ssl.key.pem",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.config",
        "sasl.jaas.config",
    ],
)
def test_secrets_among_the_clients_options_do_not_show_and_reach_the_client(name: str) -> None:
    settings = Settings(kafka=KafkaSettings(options={name: "canary-of-kafka", "security.protocol": "SASL_SSL"}))
    for shown in (repr(settings), str(settings.kafka), settings.model_dump_json()):
        assert "canary" not in shown
        assert "SASL_SSL" in shown
    assert settings.kafka.client_options() == {name: "canary-of-kafka", "security.protocol": "SASL_SSL"}
    assert "canary-of-kafka" in set(secrets_of(settings))


def test_what_an_operator_raised_satisfies_and_what_was_lowered_does_not() -> None:
    raised = {
        "min.insync.replicas": ("2", "3"),
        "retention.ms": ("604800000", "-1"),
        "max.message.bytes": ("10", "11"),
        "segment.ms": ("86400000", "3600000"),
        "cleanup.policy": ("compact,delete", "delete,compact"),
    }
    lowered = {
        "min.insync.replicas": ("2", "1"),
        "retention.ms": ("604800000", "1"),
        "max.message.bytes": ("10", "9"),
        "segment.ms": ("86400000", "604800000"),
        "cleanup.policy": ("compact", "delete"),
        "max.compaction.lag.ms": ("86400000", "9223372036854775807"),
        "delete.retention.ms": ("2", ""),
    }
    assert all(topics.satisfies(key, *values) for key, values in raised.items())
    assert not any(topics.satisfies(key, *values) for key, values in lowered.items())


@pytest.mark.parametrize(("replication", "copies"), [(1, "1"), (2, "1"), (3, "2"), (5, "4")])
def test_every_topic_keeps_all_copies_but_one_and_its_days_are_days(replication: int, copies: str) -> None:
    for topic in catalogue().values():
        config = topic.config_for(replication)
        assert config["min.insync.replicas"] == copies, topic.name
        assert int(config["segment.ms"]) <= 86_400_000, topic.name
        largest = MAX_DEAD_LETTER_BYTES if topic.name == DEAD_LETTERS else MAX_VALUE_BYTES
        assert int(config["max.message.bytes"]) >= largest, topic.name
        if topic.name != DEAD_LETTERS:
            assert int(config["max.message.bytes"]) >= 2 * MAX_VALUE_BYTES, (
                "a key may be as large as the value it is made of"
            )


class FakeAdmin:
    """A cluster whose topics were made by an earlier version, one of them raised by an operator."""

    def __init__(self) -> None:
        self.changes: dict[str, dict[str, str]] = {}
        self.config = {
            name: {**topic.config_for(3), "min.insync.replicas": "1", "segment.ms": "604800000"}
            for name, topic in catalogue().items()
        }
        self.config["notify.status.v1"] |= {
            "min.insync.replicas": "3",
            "retention.ms": "-1",
            "max.message.bytes": "99000000",
        }

    def partition_counts(self) -> dict[str, int]:
        return {name: topic.partitions["local"] for name, topic in catalogue().items()}

    def replication(self) -> dict[str, int]:
        return dict.fromkeys(catalogue(), 3)

    def configs(self, names: list[str]) -> dict[str, dict[str, str]]:
        return self.config

    def create(self, *_: Any) -> None: ...

    def alter_configs(self, changes: dict[str, dict[str, str]]) -> None:
        self.changes = changes
        for name, entries in changes.items():
            self.config[name] |= entries


def test_apply_brings_existing_topics_up_and_lowers_nothing() -> None:
    admin: Any = FakeAdmin()
    done = topics.apply(admin, "local")
    assert admin.changes["notify.status.v1"] == {"segment.ms": "86400000"}
    assert admin.changes["notify.timers.v1"] == {"segment.ms": "86400000", "min.insync.replicas": "2"}
    assert {d.entry for d in done} == {"segment.ms", "min.insync.replicas"}
    assert topics.diff(admin, "local") == []


def test_tls_settings_reach_the_pool_of_clickhouse(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("ca_file", "client_cert_file", "client_key_file")}
    for file in files.values():
        file.write_text("x")
    pool = clickhouse._pool(ClickHouseSettings(url="https://ch:8443", verify=True, **files), 3)  # type: ignore[arg-type]
    options = pool.connection_pool_kw
    assert (options["ca_certs"], options["cert_file"], options["key_file"]) == tuple(map(str, files.values()))
    assert (options["cert_reqs"], options["maxsize"]) == ("CERT_REQUIRED", 3)
    assert clickhouse._pool(ClickHouseSettings(verify=False), 1).connection_pool_kw["cert_reqs"] == "CERT_NONE"
    with pytest.raises(SettingsError, match="nowhere"):
        clickhouse._pool(ClickHouseSettings(ca_file=tmp_path / "nowhere"), 1)


def test_offset_that_stands_still_with_lag_is_noticed() -> None:
    stuck = StuckOffsets()
    partition = ("t", 0)
    assert stuck.observe({partition: 5}, {partition: 3}, 100.0) == 0
    assert stuck.observe({partition: 5}, {partition: 3}, 130.0) == 30.0
    assert stuck.observe({partition: 6}, {partition: 3}, 140.0) == 0
    assert stuck.observe({partition: 6}, {partition: 0}, 190.0) == 0


def test_view_keeps_the_last_value_drops_tombstones_and_reports_poison() -> None:
    profile = next(record for _, _, name, record in iter_examples() if name == "RecipientProfile")
    view: View[Any] = View(KafkaSettings(), RECIPIENTS, keep=lambda record: bool(record["user_id"] != "boring"))

    def record(key: bytes | None, value: bytes | None) -> ConsumerRecord:
        return ConsumerRecord(RECIPIENTS, 0, 0, 0, key, value)

    def encoded(**fields: Any) -> bytes:
        return codec("RecipientProfile").encode({**profile, **fields})

    dead_letters = view.apply(
        [
            record(b"t:a", encoded(version=1)),
            record(b"t:a", encoded(version=2)),
            record(b"t:b", encoded()),
            record(b"t:b", None),
            record(b"t:c", b"poison"),
            record(None, encoded()),
            record(b"t:d", encoded()),
            record(b"t:d", encoded(user_id="boring")),
        ]
    )
    held = view.get("t:a")
    assert held is not None
    assert held["version"] == 2
    assert [key in view for key in ("t:a", "t:b", "t:c", "t:d")] == [True, False, False, False]
    assert [codec("DeadLetter").decode(dead_letter.value)["value"] for dead_letter in dead_letters] == [
        b"poison",
        encoded(),
    ]
    assert view.not_ready() == "not started"


def test_process_is_not_ready_before_its_conditions_are_declared_and_met() -> None:
    health = Health()
    health.starting()
    assert health.not_ready() == "role: starting"
    health.require("group", lambda: "joining")
    health.started()
    assert health.not_ready() == "group: joining"
    health.require("group", lambda: None)
    assert health.not_ready() is None
