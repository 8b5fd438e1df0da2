"""Our top-level names are ours alone, everything a role needs is in the wheel, and the tree knows no machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from importlib.resources import files
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "schemas",
    "runtime",
    "vendors",
    "producers",
    "processors",
    "senders",
    "sinks",
    "tracking",
    "replay",
    "api",
    "local",
    "console",
)
TREE = (*PACKAGES, "tests", "examples", "docs", "deploy", "bench", "clients", ".ci", ".github")
_SKIPPED = {"__pycache__", ".mypy_cache", ".ruff_cache", "node_modules"}


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def in_packages() -> Iterator[Path]:
    """Every file of our packages, relative to the root."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and not _SKIPPED.intersection(path.parts):
                yield path.relative_to(ROOT)


def foreign_owners(owners: dict[str, list[str]]) -> dict[str, list[str]]:
    """Our names that another distribution installs, too: it would overwrite our files, or its removal delete them."""
    return {
        name: sorted(set(owners.get(name, [])) - {"heliograph"})
        for name in PACKAGES
        if set(owners.get(name, [])) - {"heliograph"}
    }


def test_no_other_distribution_owns_our_top_level_names() -> None:
    assert foreign_owners(dict(packages_distributions())) == {}


def test_another_owner_is_noticed() -> None:
    assert foreign_owners({"schemas": ["heliograph", "schemas"], "yaml": ["PyYAML"]}) == {"schemas": ["schemas"]}


def test_the_project_cannot_be_uploaded_and_lists_its_packages() -> None:
    project = pyproject()
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]
    assert project["project"]["requires-python"] == ">=3.11"
    assert sorted(project["tool"]["setuptools"]["packages"]["find"]["include"]) == sorted(f"{p}*" for p in PACKAGES)


def test_every_file_that_is_no_module_is_named_as_package_data() -> None:
    patterns = pyproject()["tool"]["setuptools"]["package-data"]
    unnamed = [
        str(path)
        for path in in_packages()
        if path.suffix != ".py"
        and not any(
            path.match(f"{path.parts[0]}/{p}") or Path(path.name).match(p.removeprefix("**/"))
            for p in patterns.get(path.parts[0], ())
        )
    ]
    assert unnamed == []


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("schemas", "avro/notification_request.avsc"),
        ("schemas", "topics.yaml"),
        ("schemas", "reasons.yaml"),
        ("schemas", "manifest.json"),
        ("producers", "reference/migrations"),
        ("sinks", "migrations/0001_raw_tables.sql"),
        ("sinks", "queries/report.sql"),
        ("sinks", "views/v_why.sql"),
        ("local", "mailbox/mailbox.html"),
        ("local", "servers/kafka.lock"),
    ],
)
def test_data_is_found_beside_the_code(package: str, name: str) -> None:
    found = files(package).joinpath(name)
    assert found.is_file() or found.is_dir()


def test_a_wheel_holds_every_module_and_all_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        copytree(ROOT / package, source / package, ignore=ignore_patterns(*_SKIPPED))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta; sys.stdout.write(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    # a folder without an __init__.py is no package; schemas/examples is data for tests
    expected = {path.as_posix() for path in in_packages()}
    assert expected - held == set()
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == set(PACKAGES)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def modules() -> list[Path]:
    return [path for path in in_packages() if path.suffix == ".py"]


@pytest.mark.parametrize("module", modules(), ids=str)
def test_a_module_says_what_it_does(module: Path) -> None:
    assert docstring(ROOT / module)


def lacks_boundary(text: str) -> bool:
    """Whether a docstring says neither what it imports (or that it is pure) nor what never enters it."""
    return not (re.search(r"import|\bpure\b", text, re.IGNORECASE) and re.search(r"\bnever\b", text, re.IGNORECASE))


@pytest.mark.parametrize("module", [path for path in modules() if path.name != "__init__.py"], ids=str)
def test_a_module_says_what_it_may_import_and_what_never_enters_it(module: Path) -> None:
    assert not lacks_boundary(docstring(ROOT / module))


def test_a_docstring_without_a_boundary_is_noticed() -> None:
    assert lacks_boundary("Does things. May import everything.")
    assert not lacks_boundary("Does things; pure. Never: a clock.")


MONOTONIC = re.compile(r"time\.monotonic|from time import[^\n]*\bmonotonic")


def test_only_the_clock_reads_the_monotonic_clock() -> None:
    assert [str(path) for path in modules() if MONOTONIC.search((ROOT / path).read_text("utf-8"))] == [
        "runtime/clock.py"
    ]


# Put together here, so that this file does not hold what it looks for.
HOME = "|".join(("home", "root", "work", "Users", "mnt"))
MACHINE_PATH = re.compile(rf"(?<![\w.~)/-])/(?:{HOME})/[\w.-]+")
REGISTRY = re.compile(
    "|".join(
        (
            r"py" + r"pi\.org",
            r"python" + r"hosted",
            r"repo\d?\.maven",
            r"registry\.npm",
            r"proxy\.golang",
            "index" + "-url",
        )
    )
)
ALLOWED = {"no-emit-" + "index" + "-url", "/" + "home/zo"}
"""An option that keeps hosts out of the lock, and the home of nobody in a test."""


def machine_traces(text: str) -> list[str]:
    """Absolute paths of somebody's machine, and hosts of package registries."""
    for phrase in ALLOWED:
        text = text.replace(phrase, "")
    return [*MACHINE_PATH.findall(text), *REGISTRY.findall(text)]


def texts() -> Iterator[tuple[Path, str]]:
    for path in [*ROOT.glob("*"), *(path for folder in TREE for path in (ROOT / folder).rglob("*"))]:
        if not path.is_file() or _SKIPPED.intersection(path.parts) or path.name == ".git":
            continue
        try:
            yield path.relative_to(ROOT), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def test_the_tree_knows_no_machine_and_no_registry() -> None:
    assert {str(path): found for path, text in texts() if (found := machine_traces(text))} == {}


def test_a_path_of_a_machine_is_noticed() -> None:
    assert machine_traces("see /" + "home/ada/heliograph") != []
    assert machine_traces("https://" + "py" + "pi.org/simple") != []
    assert machine_traces("GET /v1/users and /usr/bin/env, senders/email, ./work/x") == []
