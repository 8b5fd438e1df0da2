"""Every worked file of docs/providers is loaded as a process loads it, names every key, and makes a sender."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from runtime.settings import ProviderSettings, load_settings
from vendors.registry import VENDORS, create_senders
from vendors.settings import ProviderKeys

DOCS = Path(__file__).resolve().parents[2] / "docs"
KINDS = {"smtp": "email", "twilio": "sms", "fcm": "push", "apns": "push"}
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
}


def known(kind: str) -> bool:
    return (KINDS[kind], kind) in {(vendor.channel, vendor.kind) for vendor in VENDORS}


def each_kind() -> list[object]:
    return [
        pytest.param(kind, marks=pytest.mark.skipif(not known(kind), reason=f"no module sends through {kind} yet"))
        for kind in KINDS
    ]


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def write_secrets(directory: Path) -> None:
    (directory / "smtp-password").write_text("secret\n")
    (directory / "twilio-token").write_text("secret\n")
    (directory / "AuthKey_ABC123DEFG.p8").write_text(pem(ec.generate_private_key(ec.SECP256R1())))
    account = {
        "type": "service_account",
        "project_id": "shop-12345",
        "client_email": "a@shop-12345.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
        "private_key": pem(rsa.generate_private_key(65537, 2048)),
    }
    (directory / "service-account.json").write_text(json.dumps(account))


@pytest.mark.parametrize("kind", each_kind())
def test_the_worked_file_loads_and_makes_a_sender(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DOCS / "providers" / f"{kind}.toml", tmp_path / "heliograph.toml")
    write_secrets(tmp_path)
    monkeypatch.setenv("HELIOGRAPH_CONFIG", str(tmp_path / "heliograph.toml"))
    settings = load_settings()
    (sender,) = create_senders(KINDS[kind], settings.providers)
    assert (sender.name, sender.channel) == (settings.providers[0].name, KINDS[kind])


@pytest.mark.parametrize("kind", each_kind())
def test_the_worked_file_has_every_key_each_with_a_comment(kind: str) -> None:
    text = (DOCS / "providers" / f"{kind}.toml").read_text("utf-8")
    (provider,) = tomllib.loads(text)["providers"]
    package = next(vendor.package for vendor in VENDORS if vendor.kind == kind)
    module = import_module(f"{package}.sender")
    (model,) = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, ProviderKeys) and item is not ProviderKeys
    ]
    own = {field.alias or name for name, field in model.model_fields.items()}
    # A secret is in a file or in the settings, and the file is the better example.
    wanted = (_COMMON | own) - {name.removesuffix("_file") for name in own if name.endswith("_file")}
    assert set(provider) == wanted
    assert set(ProviderSettings.model_fields) == _COMMON
    lines = [line for line in text.splitlines() if re.match(r"\w+ = ", line)]
    bare = [line for line in lines if "#" not in line and not line.startswith(("channel", "kind", "host"))]
    assert bare == []


def test_the_table_of_providers_is_the_files_and_the_registry() -> None:
    rows = re.findall(
        r"^\| (\w+) \| (\w+) \| \[docs/providers/(\w+)\.toml\]", (DOCS / "providers.md").read_text(), re.M
    )
    assert {(channel, kind) for kind, channel, _ in rows} >= {(vendor.channel, vendor.kind) for vendor in VENDORS}
    assert [kind for kind, _, _ in rows] == [name for _, _, name in rows] == list(KINDS)
    assert sorted(path.stem for path in (DOCS / "providers").glob("*.toml")) == sorted(KINDS)
