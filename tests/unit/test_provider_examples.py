"""Every worked file of docs/providers is loaded as a process loads it, names every key, and makes a sender."""

from __future__ import annotations

import re
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from runtime.settings import ProviderSettings, load_settings
from tests.support.accounts import KINDS, secret_file
from vendors.registry import VENDORS, create_senders
from vendors.settings import ProviderKeys

DOCS = Path(__file__).resolve().parents[2] / "docs"
_COMMON = {
    "name",
    "channel",
    "kind",
    "rate_per_second",
    "max_in_flight",
    "timeout_s",
    "breaker",
    "price_per_message",
    "currency",
    "tenants",
}


def write_secrets(kind: str, directory: Path) -> None:
    (entry,) = tomllib.loads((DOCS / "providers" / f"{kind}.toml").read_text("utf-8"))["providers"]
    nested = [pair for value in entry.values() if isinstance(value, dict) for pair in value.items()]
    for key, value in (*entry.items(), *nested):
        if key.endswith("_file"):
            (directory / value).write_bytes(secret_file(kind, key, "https://oauth2.googleapis.com/token"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_worked_file_loads_and_makes_a_sender(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DOCS / "providers" / f"{kind}.toml", tmp_path / "heliograph.toml")
    write_secrets(kind, tmp_path)
    monkeypatch.setenv("HELIOGRAPH_CONFIG", str(tmp_path / "heliograph.toml"))
    settings = load_settings()
    (sender,) = create_senders(KINDS[kind], settings.providers)
    assert (sender.name, sender.channel) == (settings.providers[0].name, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_the_worked_file_has_every_key_each_with_a_comment(kind: str) -> None:
    text = (DOCS / "providers" / f"{kind}.toml").read_text("utf-8")
    (provider,) = tomllib.loads(text)["providers"]
    package = next(vendor.package for vendor in VENDORS if vendor.kind == kind)
    module = import_module(f"{package}.sender")
    (model,) = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, ProviderKeys) and item.__module__.startswith(f"{package}.")
    ]
    own = {field.alias or name for name, field in model.model_fields.items()}
    # A secret is in a file or in the settings, and the file is the better example.
    asked = {"reconcile"} if kind in {vendor.kind for vendor in VENDORS if vendor.can_look_up} else set()
    wanted = (_COMMON | asked | own) - {name.removesuffix("_file") for name in own if name.endswith("_file")}
    assert set(provider) == wanted
    assert set(ProviderSettings.model_fields) == _COMMON | {"reconcile"}
    lines = [line for line in text.splitlines() if re.match(r"\w+ = ", line)]
    bare = [
        line for line in lines if "#" not in line and not line.startswith(("channel", "kind", "host", "events_key"))
    ]
    assert bare == []


def test_the_table_of_providers_is_the_files_and_the_registry() -> None:
    rows = re.findall(
        r"^\| (\w+) \| (\w+) \| \[docs/providers/(\w+)\.toml\]", (DOCS / "providers.md").read_text(), re.M
    )
    assert {(channel, kind) for kind, channel, _ in rows} >= {(vendor.channel, vendor.kind) for vendor in VENDORS}
    assert [kind for kind, _, _ in rows] == [name for _, _, name in rows] == list(KINDS)
    assert sorted(path.stem for path in (DOCS / "providers").glob("*.toml")) == sorted(KINDS)
