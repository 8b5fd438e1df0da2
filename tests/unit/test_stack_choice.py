"""The tests' own choice of stores: a wrong word and a missing engine each end the run with one line; containers are those of compose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.errors import APIError

from tests.support import containers

ROOT = Path(__file__).resolve().parents[2]


def ended(word: str) -> tuple[int, str]:
    """(exit status, what was said) of a run of an integration test under this stack."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/integration/test_sink.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HELIOGRAPH_TEST_STACK": word, "DOCKER_HOST": "unix:///nowhere/docker.sock"},
    )
    return done.returncode, done.stdout + done.stderr


def test_containers_without_an_engine_end_the_run_with_one_line() -> None:
    status, said = ended("containers")
    assert status == 4
    assert said.count("HELIOGRAPH_TEST_STACK=containers: no Docker engine answers") == 1
    assert "start one, or unset the variable" in said
    assert "Traceback" not in said


def test_a_word_that_is_no_stack_ends_the_run_with_what_is_allowed() -> None:
    status, said = ended("docker")
    assert status == 4
    assert said.count("HELIOGRAPH_TEST_STACK is 'docker': it may be embedded (the default) or containers") == 1
    assert "Traceback" not in said


class Engine:
    """What was asked of the library, in place of an engine."""

    def __init__(self, image: str, env: dict[str, str], **options: Any) -> None:
        self.image, self.env, self.options = image, env, options
        self.ports: dict[str, Any] = {}
        self.said: list[Any] = []
        self.id, self.status, self.attrs = "c", "running", {"State": {"ExitCode": 0}}
        self.conflict = False

    def start(self) -> None:
        self.said.append("start")

    def stop(self) -> None:
        self.said.append("stop")

    def get_wrapped_container(self) -> Engine:
        return self

    def kill(self, signal: str) -> None:
        if self.conflict:
            raise APIError("not running", response=_Conflict())
        self.said.append(signal)

    def wait(self, timeout: float | None) -> dict[str, int]:
        return {"StatusCode": 143}

    def reload(self) -> None:
        self.said.append("reload")

    def logs(self) -> bytes:
        return b"words"


class _Conflict:
    status_code = 409


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    made: list[Engine] = []

    def make(image: str, env: dict[str, str], **options: Any) -> Engine:
        made.append(Engine(image, env, **options))
        return made[-1]

    monkeypatch.setattr(containers, "DockerContainer", make)
    return made


def test_images_are_those_of_compose_and_ports_are_of_loopback(engines: list[Engine]) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    containers.kafka(21_001)
    _, dsn = containers.postgres(21_002)
    containers.clickhouse(21_003)
    kafka, postgres, clickhouse = engines
    assert [e.image for e in engines] == [services[name]["image"] for name in ("kafka", "postgres", "clickhouse")]
    assert [e.ports for e in engines] == [
        {"9092/tcp": ("127.0.0.1", 21_001)},
        {"5432/tcp": ("127.0.0.1", 21_002)},
        {"8123/tcp": ("127.0.0.1", 21_003)},
    ]
    assert kafka.env["KAFKA_ADVERTISED_LISTENERS"] == "INSIDE://kafka:19092,OUTSIDE://127.0.0.1:21001"
    assert kafka.options == {"hostname": "kafka"}
    assert not any("${" in value for value in {**kafka.env, **postgres.env}.values())
    assert dsn == "postgresql://heliograph:heliograph@127.0.0.1:21002/heliograph"
    assert clickhouse.env == {"CLICKHOUSE_SKIP_USER_SETUP": "1"}


def test_a_container_is_killed_waited_for_and_started_again_like_a_process(
    engines: list[Engine], tmp_path: Path
) -> None:
    process = containers.clickhouse(21_003)
    (engine,) = engines
    process.kill()
    process.send_signal(signal.SIGINT)
    assert process.wait(1) == 0  # ended by the SIGTERM it was asked with
    process.start()
    engine.conflict = True
    process.terminate()  # it has ended already
    process.remove(tmp_path / "log")
    assert engine.said == ["start", "SIGKILL", "SIGINT", "start", "stop"]
    assert (tmp_path / "log").read_bytes() == b"words"
    engine.status, engine.attrs = "exited", {"State": {"ExitCode": 137}}
    assert process.poll() == 137
