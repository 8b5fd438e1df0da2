"""What can be held without a container engine: the compose file, the image's recipe and what they mount say true things."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from console.cli import run_app
from runtime import metrics
from runtime.settings import PREFIX, Settings
from vendors.registry import create_senders

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
ROLES = {"api", "relay", "router", "timers", "sender", "sink", "callbacks", "hooks", "bounces"}
"""The roles of a deployment, each a process of its own."""
STORES = {"kafka", "postgres", "clickhouse", "schema-registry", "mailpit"}


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
    return read


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def own() -> dict[str, dict[str, Any]]:
    """The services that run our image."""
    return {name: service for name, service in services().items() if "build" in service}


def problems_of(document: dict[str, Any]) -> list[str]:
    # The checker's own command is not imported: its schema is all that is wanted of it.
    spec = find_spec("check_jsonschema")
    assert spec is not None and spec.submodule_search_locations
    schema = Path(spec.submodule_search_locations[0]) / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator: Any = import_module("jsonschema").Draft202012Validator(json.loads(schema.read_text("utf-8")))
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(document)]


def test_compose_file_is_what_the_specification_allows() -> None:
    assert problems_of(compose()) == []


def test_misspelt_condition_is_found() -> None:
    wrong = compose()
    wrong["services"]["api"]["depends_on"]["init"]["condition"] = "service_completed"
    assert problems_of(wrong)


def commands() -> dict[str, list[str]]:
    return {name: service["command"] for name, service in own().items() if service["command"][0] == "run"}


def test_every_role_is_a_service_with_its_lanes_and_channels() -> None:
    ran = sorted(" ".join(command[1:]) for name, command in commands().items() if "fake" not in name)
    expected = ["api", "bounces", "callbacks", "hooks", "relay", "sink", "timers"]
    expected += [f"router --lane {lane}" for lane in ("critical", "normal", "bulk")]
    expected += [f"sender --channel {channel}" for channel in ("email", "sms", "push", "webhook")]
    assert ran == sorted(expected)
    assert {command[1] for command in commands().values()} == ROLES
    known = {command.name for command in run_app.registered_commands}
    missing = {name for name, command in commands().items() if command[1] not in known}
    # A role that this release lacks may wait behind a profile of its name; nothing starts it by accident.
    assert all(services()[name].get("profiles") == [name] for name in missing)


def in_settings(model: type[BaseModel], prefix: str = PREFIX) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from in_settings(kind, f"{prefix}{name.upper()}__")
        else:
            yield f"{prefix}{name.upper()}"


def test_every_variable_is_a_setting_and_every_value_is_taken() -> None:
    known = {*in_settings(Settings), f"{PREFIX}CONFIG"}
    for name, service in own().items():
        given = service["environment"]
        assert set(given) <= known, name
        assert all(isinstance(value, str) for value in given.values()), f"{name}: quote what is no text"
        tables: dict[str, dict[str, str]] = {}
        for variable, value in given.items():
            section, _, key = variable.removeprefix(PREFIX).lower().partition("__")
            if key:
                tables.setdefault(section, {})[key] = value
        Settings(**tables, partitions=given[f"{PREFIX}PARTITIONS"])  # type: ignore[arg-type]


def test_every_image_is_pinned_and_every_port_is_bound_to_loopback() -> None:
    for name, service in services().items():
        _, colon, tag = service["image"].rpartition(":")
        assert colon and tag and tag != "latest" and re.search(r"\d", tag), name
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", ())), name
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    own = {name for _, name in stages if name}
    assert stages and all(re.search(r":\d", base) or base in own for base, _ in stages)


def test_every_store_and_role_has_a_health_check() -> None:
    for name in {*STORES, *commands(), "simulator"}:
        assert services()[name]["healthcheck"]["test"], name
    for name, command in commands().items():
        environment = services()[name]["environment"]
        port = environment[f"{PREFIX}{'API' if command[1] == 'api' else 'METRICS'}__PORT"]
        assert f"127.0.0.1:{port}/readyz" in services()[name]["healthcheck"]["test"][-1], name


def test_roles_wait_for_the_init_job_and_it_for_the_stores() -> None:
    for name in commands():
        assert services()[name]["depends_on"]["init"] == {"condition": "service_completed_successfully"}, name
    job = services()["init"]
    assert set(job["depends_on"]) == STORES - {"mailpit"}
    assert all(wait == {"condition": "service_healthy"} for wait in job["depends_on"].values())
    assert job["command"] == ["heliograph topics apply && heliograph migrate && heliograph schemas register"]
    assert job["restart"] == "no"


def test_every_volume_is_declared_and_every_mounted_file_exists() -> None:
    mounts = [mount.split(":")[0] for service in services().values() for mount in service.get("volumes", ())]
    named = {mount for mount in mounts if not mount.startswith(".")}
    assert named == set(compose()["volumes"])
    assert all((ROOT / mount).is_dir() for mount in mounts if mount.startswith("."))


@pytest.mark.parametrize(
    ("file", "channels"), [("heliograph.toml", ["email"]), ("fakes.toml", ["push", "sms", "webhook"])]
)
def test_provider_files_are_settings(file: str, channels: list[str]) -> None:
    providers = Settings(**tomllib.loads((ROOT / "deploy" / "compose" / file).read_text("utf-8"))).providers
    assert sorted({provider.channel for provider in providers}) == channels
    for channel in set(channels) - {"push"}:  # push reads its credentials, which the simulator writes
        assert create_senders(channel, providers)
    assert "mailpit" in services() or file != "heliograph.toml"


def test_everything_that_the_image_copies_exists_and_is_let_through() -> None:
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]["find"][
        "include"
    ]
    assert set(copied) == {
        "requirements.lock",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        *(name.rstrip("*") for name in packages),
    }
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    assert set(copied) == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert "USER 10001" in DOCKERFILE.read_text("utf-8")
    assert "--require-hashes -r requirements.lock" in DOCKERFILE.read_text("utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["topics", "list"],
        ["migrate", "--help"],
        ["schemas", "asyncapi"],
        *(["run", role, "--help"] for role in sorted(ROLES)),
    ],
    ids=" ".join,
)
def test_commands_run_without_what_the_image_leaves_out(arguments: list[str]) -> None:
    left_out = re.search(r"pip uninstall --yes (.+)", DOCKERFILE.read_text("utf-8"))
    assert left_out
    gone = set(left_out[1].split())
    modules = {
        module
        for module, owners in packages_distributions().items()
        if gone.intersection(o.lower().replace("_", "-") for o in owners)
    }
    modules.add("local")
    assert "rm -r /opt/production/lib/python3.11/site-packages/local" in DOCKERFILE.read_text("utf-8")
    code = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {sorted(modules)!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        f"sys.argv = ['heliograph', *{arguments!r}]\n"
        "from console.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_prometheus_asks_every_role_that_runs_by_default() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    targets = {t for job in config["scrape_configs"] for group in job["static_configs"] for t in group["targets"]}
    running = {name for name in commands() if "profiles" not in services()[name]}
    assert targets == {f"{name}:{8080 if name == 'api' else 9464}" for name in running}


def test_every_metric_on_the_dashboard_exists() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "pipeline.json").read_text("utf-8"))
    known = set()
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            known |= {metric._name, f"{metric._name}_total", f"{metric._name}_bucket"}
    used = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"heliograph_\w+", target["expr"])
    }
    assert used and used <= known


def test_linters_pass() -> None:
    binaries = Path(sys.executable).parent
    for command in (
        ["yamllint", "--strict", "docker-compose.yml", "deploy", ".yamllint", ".hadolint.yaml"],
        ["hadolint", "--config", ".hadolint.yaml", "deploy/Dockerfile"],
    ):
        program = binaries / command[0]
        if not program.exists():
            pytest.skip(f"{command[0]} is not installed")
        done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
