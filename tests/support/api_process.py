"""A second API process on the stores of a running stack, that is killed and started again; by its module also one with other limits.

    python -m tests.support.api_process tracking.live.hub:STUCK_S=2.0     `heliograph run api` with that constant

May import local and tests. Never: a check.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from importlib import import_module
from pathlib import Path

from local.ports import PortBook
from tests.e2e.conftest import Stack

_ROOT = Path(__file__).resolve().parents[2]


def environment(running: Stack) -> dict[str, str]:
    """That of the stack's own API."""
    raw = Path(f"/proc/{running.endpoints['pids']['api']}/environ").read_text("utf-8")
    return dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)


def answers(url: str) -> bool:
    """Whether an API is ready."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class ApiProcess:
    """Runs until it is killed; a context that ends it."""

    def __init__(self, running: Stack, *limits: str) -> None:
        """`limits` are constants of modules, as `module:NAME=value`."""
        self._book = PortBook()
        port = self._book.reserve("api")
        self.url = f"http://127.0.0.1:{port}"
        self._limits = limits
        self._variables = {
            **os.environ,
            **environment(running),
            "PYTHONPATH": str(_ROOT),
            "HELIOGRAPH_API__PORT": str(port),
            "HELIOGRAPH_API__DRAIN_S": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ApiProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._book.close()

    def start(self) -> subprocess.Popen[bytes]:
        """The new process, perhaps not ready yet."""
        self.kill()
        command = [sys.executable, "-m", "tests.support.api_process", *self._limits]
        self.process = subprocess.Popen(
            command, env=self._variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self.process

    def kill(self) -> None:
        """With SIGKILL; nothing where none runs."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def ready(self) -> bool:
        """Whether it answers, and is ready."""
        return answers(self.url)


def main(limits: list[str]) -> None:
    for limit in limits:
        where, _, value = limit.partition("=")
        module, _, name = where.partition(":")
        found = import_module(module)
        assert hasattr(found, name), f"{module} has no {name}"
        setattr(found, name, json.loads(value))
    from console.cli import main as heliograph

    sys.argv = ["heliograph", "run", "api"]
    heliograph()


if __name__ == "__main__":
    main(sys.argv[1:])
