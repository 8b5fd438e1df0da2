"""Node, Go, promtool and Python environments for the tests that need them: found or skipped with the reason, built once into the user's cache.

May import pytest and local. Never: what a project does.
"""

from __future__ import annotations

import fcntl
import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from local.ports import cache_dir

_BUILD_TIMEOUT_S = 240


def tool(name: str) -> str:
    """The path of a command; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def node_project(folder: Path) -> Path:
    """A copy of a Node project with what its lockfile names installed; skips without Node, npm or a registry."""
    tool("node")
    npm = tool("npm")
    return _built(folder, [npm, "ci", "--no-progress", "--loglevel=error"])


def go_program(folder: Path) -> Path:
    """The program of a Go project; skips without Go or a module proxy."""
    go = tool("go")
    return _built(folder, [go, "build", "-mod=readonly", "-o", "program", "."]) / "program"


def python_environment(folder: Path) -> Path:
    """The `bin` of an environment with what a folder's requirements.txt pins; skips where they cannot be had."""
    pip = ".venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt"
    made = _built(folder, ["sh", "-c", f"{shlex.quote(sys.executable)} -m venv .venv && {pip}"])
    return made / ".venv" / "bin"


def promtool() -> Path:
    """Prometheus's checker of rules: installed, or out of Debian's package, which is fetched once (19 MB) and not installed."""
    if found := shutil.which("promtool"):
        return Path(found)
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt is None or dpkg is None:
        pytest.skip("promtool is not installed")
    home = cache_dir() / "promtool"
    home.mkdir(parents=True, exist_ok=True)
    program = home / "usr" / "bin" / "promtool"
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / ".built").exists():
            unpack = "apt-get download prometheus && dpkg --extract prometheus_*.deb . && rm prometheus_*.deb usr/bin/prometheus"
            done = subprocess.run(
                ["sh", "-c", unpack], cwd=home, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
            )
            if done.returncode != 0 or not program.exists():
                pytest.skip(f"promtool is not installed and cannot be fetched: {' '.join(done.stderr.split())[:300]}")
            (home / ".built").touch()
    return program


def _built(folder: Path, command: Sequence[str]) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "node_modules" not in path.parts)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    home = cache_dir() / "examples" / f"{folder.name}-{digest.hexdigest()[:12]}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / ".built").exists():
            shutil.rmtree(home, ignore_errors=True)
            for path in files:
                target = home / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            done = subprocess.run(
                command, cwd=home, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False
            )
            if done.returncode != 0:
                pytest.skip(f"{folder.name} cannot be built here: {' '.join(done.stderr.split())[:300]}")
            (home / ".built").touch()
    return home
