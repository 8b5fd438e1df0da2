"""Whatever is in the toml, the environment or a fault's body: settings or a named error, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from local.simulator.faults import Fault, FaultBook, FaultError, Mode
from runtime.errors import SettingsError
from runtime.settings import Settings, load_settings
from vendors.registry import create_senders

_FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_VARIABLES = st.sampled_from(
    [f"HELIOGRAPH_{name.upper()}" for name in Settings.model_fields]
    + [
        "HELIOGRAPH_KAFKA__OPTIONS",
        "HELIOGRAPH_API__PORT",
        "HELIOGRAPH_SENDER__WINDOW",
        "HELIOGRAPH_PROVIDERS__0__NAME",
        "HELIOGRAPH_",
        "HELIOGRAPH___",
        "HELIOGRAPH_KAFKA__",
        "HELIOGRAPH_KAFKA__X__Y",
        "HELIOGRAPH_NO_SUCH",
    ]
)
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
_VALUES = _TEXT | st.sampled_from(
    [
        "",
        "null",
        "[]",
        "{}",
        "1",
        "-1",
        "NaN",
        "1e999",
        "true",
        '{"a": 1}',
        "[{}]",
        '[{"name": 1}]',
        "{" * 2_000,
        "[" * 2_000,
        '{"port": []}',
        "9" * 5_000,
        '"x"',
        '[{"name": "a", "channel": "email", "kind": "smtp"}]',
    ]
)
_SCALARS = [
    "1",
    "-1",
    "1e400",
    "nan",
    "true",
    '"x"',
    '""',
    "[]",
    "[[]]",
    "{}",
    "2026-03-01",
    "9" * 400,
    "{a = {b = 1}}",
]
_TOML = st.lists(
    st.sampled_from(
        ["[kafka]", "[api]", "[[providers]]", "[providers]", "[sender]", "[providers.breaker]", "[x]", "[[kafka]]"]
    )
    | st.builds(
        lambda key, value: f"{key} = {value}",
        st.sampled_from(
            ["name", "channel", "kind", "port", "window", "providers", "kafka", "key_file", "options", "log_level"]
        ),
        st.sampled_from([*_SCALARS, '"email"', '"smtp"', '"no/such/file"']),
    )
    | _TEXT,
    max_size=8,
).map("\n".join)


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HELIOGRAPH_")]:
        monkeypatch.delenv(name)
    return tmp_path / "heliograph.toml"


def load_and_construct() -> None:
    try:
        loaded = load_settings()
        for provider in loaded.providers:
            create_senders(provider.channel, [provider])
    except SettingsError as exc:
        assert "\n" not in str(exc)


@given(st.dictionaries(_VARIABLES, _VALUES, max_size=3))
@_FUZZ
def test_any_environment_is_settings_or_a_settings_error_of_one_line(empty: Path, variables: dict[str, str]) -> None:
    with patch.dict(os.environ, variables):
        load_and_construct()


@given(_TOML)
@example("providers = 1")
@example('providers = [1, "x"]')
@example('[providers]\nname = "x"')
@example('[[providers]]\nname = "a"\nchannel = "email"\nkind = "smtp"\nhost = "h"\nport = 1\nfrom_address = "x"')
@example('[[providers]]\nname = "a"\nchannel = "sms"\nkind = "smtp"')
@example("x = " + "[" * 3_000)
@_FUZZ
def test_any_toml_is_settings_or_a_settings_error_of_one_line(empty: Path, toml: str) -> None:
    empty.write_text(toml, "utf-8")
    load_and_construct()


def test_a_file_that_is_no_text_or_a_directory_is_a_settings_error(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty.write_bytes(b"\xff\xfe\0")
    with pytest.raises(SettingsError):
        load_settings()
    monkeypatch.setenv("HELIOGRAPH_CONFIG", str(empty.parent))
    with pytest.raises(SettingsError):
        load_settings()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = ["kind", "mode", "rate", "latency_ms", "retry_after_s", "retry_after_date", "match", "times", "unknown"]
_NEARLY = st.sampled_from(["smtp", *(mode.value for mode in Mode), 429, 500, 0.5, 1, True, None, "", "x", -1, 1e400])


@pytest.mark.parametrize("body", [{"kind": []}, {"kind": "smtp", "mode": {}}])
def test_a_kind_or_mode_that_is_a_list_is_a_fault_error(body: Any) -> None:
    with pytest.raises(FaultError):
        FaultBook({"smtp"}).add(body)


def hashable(body: Any) -> bool:
    """See the test above."""
    return not isinstance(body, dict) or not any(isinstance(body.get(key), list | dict) for key in ("kind", "mode"))


@given(
    (_JSON | st.dictionaries(st.sampled_from(_FIELDS), _NEARLY | _JSON, max_size=8)).filter(hashable),
    st.text(max_size=20),
)
@_FUZZ
def test_any_body_is_a_fault_that_decides_or_a_fault_error(body: Any, recipient: str) -> None:
    book = FaultBook({"smtp", "twilio"})
    try:
        fault = book.add(body)
    except FaultError:
        assert book.faults == []
        return
    assert isinstance(fault, Fault)
    verdict = book.decide(fault.kind, recipient)
    assert 0 <= verdict.latency_s <= 3_600
