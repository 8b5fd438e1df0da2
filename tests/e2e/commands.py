"""Commands of `heliograph` on a running stack, as in a terminal of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Stack

ROOT = Path(__file__).resolve().parents[2]


def begin(running: Stack, *arguments: str) -> subprocess.Popen[str]:
    """A command in another terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "console.cli", *arguments, "--state-dir", str(running.state_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def heliograph(running: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = begin(running, *arguments)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def answer(running: Stack, *arguments: str) -> Any:
    done = heliograph(running, *arguments, "--json")
    assert done.returncode == 0, (done.stdout, done.stderr)
    return json.loads(done.stdout)


def alone(*arguments: str, given: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of which no stack is named."""
    return subprocess.run(
        [sys.executable, "-m", "console.cli", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
