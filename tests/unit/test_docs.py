"""What the documents say is there, and what is there is in the documents."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr

from local.supervisor.layout import ROLES
from runtime import metrics, settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    ROOT / ".github" / "pull_request_template.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = (
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
    "deploy",
    "bench",
    "examples",
    "tests",
    "docs",
)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*|[\w-]+\.(?:toml|md|lock)")
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def missing_paths(text: str, folder: Path = ROOT) -> list[str]:
    """Paths in backticks, and targets of links of a document in `folder`, that are not in the repository."""
    named = [code for code in _CODE.findall(text) if _PATH.fullmatch(code)]
    missing = [path for path in named if not (ROOT / path).exists() and path not in WRITTEN]
    return missing + [path for path in _LINK.findall(text) if not (folder / path).exists()]


WRITTEN = {"heliograph.toml"}
"""Files that users write."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(document: Path) -> None:
    assert missing_paths(document.read_text("utf-8"), document.parent) == []


def test_a_file_that_does_not_exist_is_noticed() -> None:
    text = "see `runtime/kafka/consumer.py`, `runtime/nothing.py` and [it](docs/nothing.md)"
    assert missing_paths(text) == ["runtime/nothing.py", "docs/nothing.md"]


def test_code_refers_to_documents_and_sections_that_exist() -> None:
    found = []
    for path in ROOT.glob("*/**/*.py"):
        if path.relative_to(ROOT).parts[0] not in FOLDERS:
            continue
        for document, section in re.findall(r'(docs/\w+\.md)(?:, "([^"]+)")?', path.read_text("utf-8")):
            if document == "docs/nothing.md":
                continue
            text = read(document) if (ROOT / document).exists() else ""
            if not text or (section and f"## {section}\n" not in text):
                found.append(f"{path.name}: {document} {section}")
    assert found == []


PACKAGES = FOLDERS[: FOLDERS.index("deploy")]
_MODULE = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.[a-z_0-9]+)+\b(?!\()")
_FILE = re.compile(r"\b[a-z_0-9]+(?:/[a-z_0-9]+)*\.(?:py|sql|yaml)\b")


def stale_names(source: str, file_names: set[str]) -> list[str]:
    """Files and modules that the docstrings of a module name and that are not in the repository."""
    docs = " ".join(
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    files = [name for name in _FILE.findall(docs) if name.rpartition("/")[2] not in file_names]
    # The last parts may be names within a module.
    modules = [name for name in _MODULE.findall(docs) if not is_module(".".join(name.split(".")[:2]))]
    return files + modules


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_docstrings_name_files_and_modules_that_exist() -> None:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    file_names = {path.name for path in paths}
    modules = [path for path in paths if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES]
    found = {
        str(p.relative_to(ROOT)): names for p in modules if (names := stale_names(p.read_text("utf-8"), file_names))
    }
    assert found == {}


def test_docstring_that_names_what_has_moved_is_noticed() -> None:
    source = '"""May import local.simulator.state, senders.desk. Never: faults (gone.py, docs.py, ids.py)."""'
    assert stale_names(source, {"ids.py", "docs.py"}) == ["gone.py", "senders.desk"]


def test_names_in_backticks_that_belong_to_a_file_are_in_it() -> None:
    pairs = re.findall(
        r"`([A-Z_]{4,})`[^`]{0,6} in `([\w/]+\.py)`|\(`([A-Z_]{4,})` in `([\w/]+\.py)`", read("docs/architecture.md")
    )
    assert pairs
    for first, second, third, fourth in pairs:
        assert re.search(rf"^{first or third}\b", read(second or fourth), re.MULTILINE), (
            first or third,
            second or fourth,
        )


def table(text: str, heading: str) -> Iterator[list[str]]:
    """The rows of the first table after a heading, without its head."""
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    for row in rows[2:]:
        yield [cell.strip() for cell in row.strip("|").split("|")]


def in_settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from in_settings(kind, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}", field.get_default(call_default_factory=True)


def as_documented(default: Any) -> str:
    if isinstance(default, SecretStr):
        return "(secret)"
    if default is None:
        return ""
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def test_the_settings_table_is_the_settings() -> None:
    documented = {row[0].strip("`"): row[1] for row in table(read("docs/operations.md"), "Settings")}
    actual = {name: as_documented(default) for name, default in in_settings(settings.Settings, settings.PREFIX)}
    others = {f"{settings.PREFIX}{name}" for name in settings._OTHER_VARIABLES}
    assert {name: value for name, value in documented.items() if name not in others} == actual
    assert others <= documented.keys()


def test_the_metrics_table_is_the_metrics() -> None:
    documented = {row[0].strip("`"): (row[1], row[2]) for row in table(read("docs/operations.md"), "Metrics")}
    actual = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            actual[name] = (metric._type, ", ".join(metric._labelnames))
    assert documented == actual


def test_the_table_of_roles_is_what_the_local_stack_runs() -> None:
    documented = {row[0].strip("`").split()[1] for row in table(read("docs/operations.md"), "Roles")}
    assert documented == {words[0] for words in ROLES.values()}


def test_every_reason_has_advice() -> None:
    documented = [(row[0], row[1]) for row in table(read("docs/operations.md"), "Outcome of a message")]
    settled = yaml.safe_load(read("schemas/reasons.yaml"))["settled"]
    assert sorted(documented) == sorted((state, r) for state, spec in settled.items() for r in spec.get("reasons", ()))


def make_targets() -> dict[str, str]:
    return dict(re.findall(r"^([a-z-]+):.*?## (.+)$", read("Makefile"), re.MULTILINE))


def test_the_targets_that_documents_name_exist_and_say_what_they_do() -> None:
    targets = make_targets()
    assert {"setup", "demo", "test", "unit", "check", "lock", "up", "down", "clean"} <= targets.keys()
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        named = {*re.findall(r"^make ([a-z-]+)", text, re.MULTILINE), *re.findall(r"`make ([a-z-]+)`", text)}
        assert named <= targets.keys(), document.name


def test_the_lock_is_made_as_its_head_says() -> None:
    head = read("requirements.lock").splitlines()[1].lstrip("# ")
    assert head in read("Makefile")


def test_hooks_are_the_commands_of_make_check() -> None:
    recipe = read("Makefile").split("\ncheck:", 1)[1].split("\n\n", 1)[0]
    commands = re.split(r"\n\t| && ", recipe)[1:]
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == [
        command.replace("$(BIN)", ".venv/bin") for command in commands
    ]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_changelog_has_the_version_under_an_unreleased_heading() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    headings = re.findall(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", read("CHANGELOG.md"), re.MULTILINE)
    assert [name for name, _ in headings][:2] == ["Unreleased", version]
    assert not headings[0][1] and all(date for _, date in headings[1:])


def test_licence_is_that_of_the_package() -> None:
    assert tomllib.loads(read("pyproject.toml"))["project"]["license"] == "Apache-2.0"
    assert read("LICENSE").split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in read("LICENSE")


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    commands = script.read_text("utf-8").splitlines()
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in commands
    assert {"make check", "make test"} <= set(commands)
    assert "make test " in read("README.md")
