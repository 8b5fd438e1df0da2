"""The contracts of import-linter are kept by the tree, and each notices the import it forbids."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
PACKAGES: list[str] = CONFIG["root_packages"]
LAYERS, CIRCLES, VENDORS, SCREEN, HTTP = (contract["name"] for contract in CONFIG["contracts"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages that a test may spoil."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def broken_contracts(tree: Path) -> set[str]:
    """Names of the contracts that the linter calls broken."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60, check=False)
    said = " ".join(done.stdout.split())
    assert "Contracts: " in said, done.stdout + done.stderr  # it has judged
    broken = {contract["name"] for contract in CONFIG["contracts"] if f"{contract['name']} BROKEN" in said}
    assert done.returncode == bool(broken)
    return broken


def test_tree_keeps_every_contract(tree: Path) -> None:
    assert broken_contracts(tree) == set()


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        # Up, one layer at a time, and between neighbours of a layer.
        ("schemas", "import runtime.clock", LAYERS),
        ("runtime", "from vendors.sender import Sent", LAYERS),
        ("vendors", "import senders.claims", LAYERS),
        ("senders", "import tracking.status", LAYERS),
        ("senders", "from processors import groups", LAYERS),
        ("sinks", "import producers.publisher", LAYERS),
        ("tracking", "import api", LAYERS),
        ("tracking", "from replay.plan import RecordPosition", LAYERS),
        ("replay", "import tracking", LAYERS),
        ("replay", "import console.commands.output", LAYERS),
        ("api", "from console.commands import output", LAYERS),
        ("api", "import local", LAYERS),
        ("local", "import api.app", LAYERS),
        ("local", "from api import role", LAYERS),
        ("local", "import console", LAYERS),
        ("local", "from console.cli import app", LAYERS),
        # A circle within a package.
        ("runtime.kafka", "import runtime.lag", CIRCLES),
        ("local.servers", "import local.supervisor.layout", CIRCLES),
        # From one vendor to another: a module of it, a name, the whole of it. And from what they share.
        ("vendors.fcm", "from vendors.smtp.codes import shown", VENDORS),
        ("vendors.fcm", "from vendors.apns import codes", VENDORS),
        ("vendors.fcm", "import vendors.smtp", VENDORS),
        ("vendors.fcm", "from vendors import twilio", VENDORS),
        ("vendors", "import vendors.twilio.codes", VENDORS),
        ("vendors", "from vendors import twilio", VENDORS),
        # A screen.
        ("tracking", "import typer", SCREEN),
        ("replay", "from rich import print", SCREEN),
        ("replay", "from click import echo", SCREEN),
        ("vendors.smtp", "import rich.console", SCREEN),
        ("sinks", "from typer import echo", SCREEN),
        # HTTP.
        ("tracking", "from fastapi import HTTPException", HTTP),
        ("tracking", "from runtime.http.problems import Problem", HTTP),
        ("tracking", "from runtime import http", HTTP),
        ("replay", "from starlette.responses import JSONResponse", HTTP),
        ("replay", "import aiohttp", HTTP),
        ("replay", "from http import HTTPStatus", HTTP),
    ],
)
def test_wrong_import_breaks_its_contract(tree: Path, module: str, line: str, contract: str) -> None:
    wrong = tree / module.replace(".", "/") / "wrong.py"
    wrong.write_text(f"{line}\n")
    try:
        assert broken_contracts(tree) == {contract}
    finally:
        wrong.unlink()


@pytest.mark.parametrize("package", ["tracking", "replay", "senders"])
def test_print_is_refused(package: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", f"{package}/wrong.py", "-"]
    done = subprocess.run(
        command, cwd=ROOT, input='print("sent")\n', capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "T201" in done.stdout
