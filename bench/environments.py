"""Virtual environments of rivals: made on first use, in the user's cache directory, from a pinned file with hashes.

    python("celery")    the interpreter of the environment of bench/rivals/celery.txt

An environment's name has the hash of its file and of the interpreter in it, so a changed pin is a new environment.
May import local.ports. Never: a package that is not pinned.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from local.ports import cache_dir

ROOT = Path(__file__).parent.parent
RIVALS = Path(__file__).parent / "rivals"
_READY = ".ready"
log = logging.getLogger("bench")


class UnavailableRivalError(Exception):
    """A rival that cannot be measured here, and why."""


def environment_name(name: str, requirements: bytes, interpreter: str) -> str:
    """`celery-0f3a…`: another for every pin and interpreter."""
    return f"{name}-{hashlib.sha256(requirements + interpreter.encode()).hexdigest()[:12]}"


def python(name: str) -> Path:
    """The interpreter of an environment; makes it where it is missing. Raises UnavailableRivalError."""
    requirements = RIVALS / f"{name}.txt"
    directory = cache_dir() / "bench" / environment_name(name, requirements.read_bytes(), sys.version)
    interpreter = directory / "bin" / "python"
    if not (directory / _READY).exists():
        log.info("making the environment of %s in %s", name, directory)
        shutil.rmtree(directory, ignore_errors=True)  # what an interrupted run left
        venv.create(directory, with_pip=True)
        pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        done = subprocess.run([*pip, "-r", str(requirements)], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise UnavailableRivalError(f"its packages cannot be installed: {reason}")
        (directory / _READY).touch()
    return interpreter


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a process of a rival: it finds our modules, and none of our settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HELIOGRAPH_")}
    return {**own, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(extra or {})}


def program(name: str, of: str | None = None) -> Path:
    """A program of the machine, else one that a package of the environment `of` brings. Raises UnavailableRivalError."""
    found = shutil.which(name)
    if found:
        return Path(found)
    brought = [] if of is None else sorted(python(of).parent.parent.rglob(f"bin/{name}"))
    if not brought:
        raise UnavailableRivalError(f"{name} is not installed")
    return brought[0]
