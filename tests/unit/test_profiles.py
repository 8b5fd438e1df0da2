"""Profiles: whose API a command calls, and that nobody else reads the keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from console.commands import profiles
from console.commands.client import chosen
from console.commands.profiles import Profile
from runtime.errors import HeliographError, SettingsError

SHOP, TEST = Profile("https://notify.shop.example", "hg_shop_1"), Profile("https://test.shop.example", "hg_test_1")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def stack_in(directory: Path) -> Path:
    directory.mkdir()
    (directory / "endpoints.json").write_text(json.dumps({"api": "http://127.0.0.1:1", "api_key": "hg_local_1"}))
    return directory


@pytest.mark.parametrize(
    ("given", "stack", "wanted"),
    [
        pytest.param(("https://a.example", "hg_a_1", "test"), True, Profile("https://a.example", "hg_a_1"), id="named"),
        pytest.param((None, None, "test"), True, TEST, id="a profile before the local stack"),
        pytest.param((None, "hg_a_1", "test"), True, TEST, id="a key in the environment does not hide a profile"),
        pytest.param((None, None, None), True, Profile("http://127.0.0.1:1", "hg_local_1"), id="the local stack"),
        pytest.param((None, None, None), False, SHOP, id="else the default profile"),
    ],
)
def test_which_api_is_called(
    given: tuple[str | None, str | None, str | None],
    stack: bool,
    wanted: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    profiles.write({"default": SHOP, "test": TEST})
    home = tmp_path / "stack"
    if stack:
        endpoints = json.loads((stack_in(home) / "endpoints.json").read_text())
        monkeypatch.setattr("console.commands.client.read_endpoints", lambda _: endpoints)
    assert chosen(*given, home)[1] == wanted


def test_without_anything_to_call_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(HeliographError, match="heliograph up"):
        chosen(None, None, None, tmp_path / "nothing")
    with pytest.raises(SettingsError, match="there is no profile shop; there are none: `heliograph login"):
        chosen(None, None, "shop", tmp_path / "nothing")
    with pytest.raises(SettingsError, match="both --api and --api-key"):
        chosen("https://a.example", None, None, tmp_path)


def test_only_the_owner_may_read_the_keys() -> None:
    profiles.write({"default": SHOP})
    file = profiles.path()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["profiles.json"]
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        profiles.read()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"api": "x"}}', "\xff"])
def test_a_broken_file_is_one_line(text: str) -> None:
    profiles.write({})
    profiles.path().write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match="does not hold profiles"):
        profiles.read()


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "x" * 65])
def test_a_profiles_name_is_a_word(name: str) -> None:
    if name == "..":
        assert profiles.checked_name(name) == name  # a key of an object, never a path
        return
    with pytest.raises(SettingsError, match="1 to 64"):
        profiles.checked_name(name)
