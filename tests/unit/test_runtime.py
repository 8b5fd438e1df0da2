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

from processors.app import DrainingConsumer
from runtime.errors import SettingsError
from runtime.health import Health
from runtime.lag import StuckOffsets
from runtime.logs import configure_logs, get_logger
from runtime.records import InRecord
from runtime.settings import KafkaSettings, load_settings
from runtime.views import View
from schemas.codec import codec, iter_examples
from schemas.topics import RECIPIENTS

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
    log.info("sent to canary@example.org", address="canary@example.org", body="s3cr3t-canary", api_key="s3cr3t-canary",
             nested={"email": "s3cr3t-canary", "note": "call +4915112345678"}, raw=b"s3cr3t-canary")  # fmt: skip
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
        "faust's Consumer._drain_messages changed: compare processors/app.py with it before pinning the new version"
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

    def record(key: bytes | None, value: bytes | None) -> InRecord:
        return InRecord(RECIPIENTS, 0, 0, 0, key, value)

    def encoded(**fields: Any) -> bytes:
        return codec("RecipientProfile").encode({**profile, **fields})

    letters = view.apply(
        [record(b"t:a", encoded(version=1)), record(b"t:a", encoded(version=2)), record(b"t:b", encoded()),
         record(b"t:b", None), record(b"t:c", b"poison"), record(None, encoded()), record(b"t:d", encoded()),
         record(b"t:d", encoded(user_id="boring"))]
    )  # fmt: skip
    held = view.get("t:a")
    assert held is not None
    assert held["version"] == 2
    assert [key in view for key in ("t:a", "t:b", "t:c", "t:d")] == [True, False, False, False]
    assert [codec("DeadLetter").decode(letter.value)["value"] for letter in letters] == [b"poison", encoded()]
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
