"""The files of a stack's directory, and the processes that an earlier supervisor recorded there.

May import local. Never: a process of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from local import AlreadyRunningError, LocalStackError
from local.processes import Identity, start_time_of
from runtime.clock import system_monotonic

Phase = Literal["starting", "ready", "stopping", "failed"]


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Paths in a state directory, and how its files are read and written."""

    directory: Path

    @property
    def endpoints(self) -> Path:
        """The public contract."""
        return self.directory / "endpoints.json"

    @property
    def status(self) -> Path:
        """Phase, reason, and the pids."""
        return self.directory / "supervisor.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor."""
        return self.directory / "supervisor.lock"

    @property
    def secrets(self) -> Path:
        """What must be the same at the next start."""
        return self.directory / "secrets.json"

    @property
    def settings(self) -> Path:
        """The roles' settings file."""
        return self.directory / "heliograph.toml"

    def log(self, name: str) -> Path:
        """A role's log."""
        return self.directory / "logs" / f"{name}.log"

    def data(self, name: str) -> Path:
        """A server's data."""
        return self.directory / "data" / name

    def read(self, path: Path) -> dict[str, Any]:
        """A JSON file, {} when there is none."""
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise LocalStackError(f"{path} cannot be read: {exc}; remove it and try again") from exc
        return content if isinstance(content, dict) else {}

    def take_lock(self) -> int:
        """Lock the directory for this process's life. Raises AlreadyRunningError."""
        make_directory(self.directory)
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(handle)
            raise AlreadyRunningError(
                f"a stack already runs in {self.directory}: use it, or `heliograph down --state-dir {self.directory}`"
            ) from exc
        me = json.dumps({"pid": os.getpid(), "birth": start_time_of(os.getpid())}).encode()
        os.truncate(handle, 0)
        os.pwrite(handle, me, 0)
        return handle

    def holder(self) -> Identity | None:
        """The supervisor that lives here, None when there is none.

        Read from the lock's content, never by trying the lock: whoever tries it would look like a supervisor to others.
        """
        try:
            held = json.loads(self.lock.read_text("ascii"))
            identity = Identity(int(held["pid"]), str(held["birth"]))
        except (OSError, ValueError, KeyError):
            return None
        return identity if identity.is_running() else None

    def write_status(self, phase: Phase, reason: str | None, running: Mapping[str, Identity]) -> None:
        """Replace supervisor.json."""
        pids = {name: {"pid": it.pid, "birth": it.start_time} for name, it in running.items()}
        write_atomically(self.status, json.dumps({"phase": phase, "reason": reason, "pids": pids}, indent=2) + "\n")

    def recorded(self) -> dict[str, Identity]:
        """The processes that the last supervisor recorded, itself included, whether they still run or not."""
        pids = self.read(self.status).get("pids", {})
        return {name: Identity(int(entry["pid"]), str(entry["birth"])) for name, entry in pids.items()}


def make_directory(path: Path) -> None:
    """Make a directory with its parents. Raises LocalStackError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise LocalStackError(f"cannot make {path}: {exc.strerror}; give another --state-dir") from exc


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never a part."""
    unfinished = path.with_name(path.name + ".new")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    unfinished.replace(path)


def end_leftovers(files: StateFiles, timeout_s: float = 10.0) -> list[str]:
    """Kill what an earlier supervisor left behind, newest layer first; the names of what was still there."""
    left = {name: identity for name, identity in files.recorded().items() if identity.is_running()}
    left.pop("supervisor", None)
    for identity in left.values():
        identity.send(signal.SIGKILL)
    deadline = system_monotonic() + timeout_s
    while any(identity.is_running() for identity in left.values()):
        if system_monotonic() > deadline:
            names = ", ".join(f"{name} (pid {it.pid})" for name, it in left.items() if it.is_running())
            raise LocalStackError(f"processes of an earlier stack do not end: {names}; end them and try again")
        time.sleep(0.02)
    return sorted(left)
