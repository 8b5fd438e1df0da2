"""Child processes of the local stack: what one is, when it is started again, and which process on the machine is it.

May import psutil, the standard library and local. Never: which processes a stack has.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtime.clock import system_monotonic

PR_SET_PDEATHSIG = 1
LOG_CAP_BYTES = 20 * 1024 * 1024
_LIBC = ctypes.CDLL(None, use_errno=True)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a child that died waits before it is started again."""

    first_s: float = 0.2
    factor: float = 2.0
    max_s: float = 5.0
    reset_after_s: float = 30.0

    def delay_s(self, previous_s: float | None, uptime_s: float) -> float:
        """The next wait.

        no wait yet, or up for reset_after_s or longer → first_s
        else                                          → the previous wait times factor, at most max_s
        """
        if previous_s is None or uptime_s >= self.reset_after_s:
            return self.first_s
        return min(previous_s * self.factor, self.max_s)


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process of the stack. It never changes while the stack lives: a restart gets the same command and ports."""

    name: str
    command: Callable[[], Sequence[str]]
    is_ready: Callable[[], bool]
    log: Path
    environment: Callable[[], Mapping[str, str]] | None = None
    """Its whole environment, asked at every start; None is the supervisor's own."""
    directory: Path | None = None
    """Where it works; None is the supervisor's own."""
    prepare: Callable[[], None] = _nothing
    """Once, before the first start, in a thread (downloads, formatting). Raises LocalStackError."""
    before_start: Callable[[], None] = _nothing
    """Before every start, must be quick."""
    stop_signal: signal.Signals = signal.SIGTERM
    ready_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Identity:
    """A process on this machine, safe against its number being used again."""

    pid: int
    start_time: str

    def is_running(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return start_time_of(self.pid) == self.start_time

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it still is this process."""
        if self.is_running():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return  # it ended in between


def start_time_of(pid: int) -> str | None:
    """When a running process began, in a form that only it has; None when it does not run or is a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if sys.platform == "linux":
            # clock ticks since boot: psutil's create_time moves when the wall clock is set
            fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
            return f"{boot}:{fields[19]}"
        return f"{process.create_time():.2f}"
    except (psutil.Error, OSError):
        return None


def wait_until_gone(pids: Sequence[int], timeout_s: float) -> bool:
    """Whether all processes have ended, within a time. Zombies count as ended: their parent may never reap them."""
    deadline = system_monotonic() + timeout_s
    while any(start_time_of(pid) is not None for pid in pids):
        if system_monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Child:
    """The running state of a ChildSpec."""

    def __init__(self, spec: ChildSpec, backoff: Backoff | None = None) -> None:
        self.spec = spec
        self.identity: Identity | None = None
        self.starts = 0
        self.ready = False
        self.deaths_before_ready = 0
        self.last_exit: int | None = None
        self._backoff = backoff or Backoff()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._delay_s: float | None = None
        self._start_at: float | None = None
        self._log_start = 0

    @property
    def name(self) -> str:
        """The role's name."""
        return self.spec.name

    @property
    def pid(self) -> int | None:
        """Its process number while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self, now: float) -> None:
        """Start it; what cannot be started counts as dead.

        Call from the supervisor's main thread only: Linux ends a child when the *thread* that made it ends.
        """
        self.starts += 1
        self.ready = False
        self._started_at = now
        self._start_at = None
        spec = self.spec
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        cap_log(spec.log)
        with spec.log.open("ab") as log:
            self._log_start = log.tell()
            try:
                spec.before_start()
                self._process = subprocess.Popen(
                    list(spec.command()),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(spec.environment()) if spec.environment else None,
                    cwd=spec.directory,
                    start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops all in order
                    preexec_fn=die_with_parent(os.getpid(), signal.SIGKILL),
                )
            except OSError as exc:
                log.write(f"cannot start {spec.name}: {exc}\n".encode())
                self._bury(now, None)
                return
        self.identity = Identity(self._process.pid, start_time_of(self._process.pid) or "")

    def reap(self, now: float) -> bool:
        """Whether it died since the last call; then its next start is set."""
        if self._process is None or self._process.poll() is None:
            return False
        self._bury(now, self._process.returncode)
        return True

    def _bury(self, now: float, exit_code: int | None) -> None:
        self.last_exit = exit_code
        self._process = None
        self.identity = None
        if not self.ready:
            self.deaths_before_ready += 1
        self.ready = False
        self._delay_s = self._backoff.delay_s(self._delay_s, now - self._started_at)
        self._start_at = now + self._delay_s

    def is_due(self, now: float) -> bool:
        """Whether it is time to start it again."""
        return self._process is None and self._start_at is not None and now >= self._start_at

    def signal(self, number: signal.Signals) -> None:
        """Signal it, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within a time."""
        if self._process is None:
            return True
        try:
            self.last_exit = self._process.wait(max(timeout_s, 0.0))
        except subprocess.TimeoutExpired:
            return False
        self._process = None
        self.identity = None
        return True

    def last_log_line(self) -> str:
        """Why it is not there: the signal that ended it, else the last line it logged since its last start."""
        line = last_line(self.spec.log, self._log_start)
        if self.last_exit is not None and self.last_exit < 0:
            return describe_exit(self.last_exit)  # a process that is killed cannot say why
        return line or describe_exit(self.last_exit)


def describe_exit(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it logged nothing"
    if code >= 0:
        return f"it ended with exit code {code} and logged nothing"
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


def last_line(path: Path, start: int = 0, limit: int = 300) -> str:
    """The last line with text in a log, from a position on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 16_384, min(start, size)))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:limit] for line in reversed(lines) if line.strip()), "")


def cap_log(path: Path, cap_bytes: int = LOG_CAP_BYTES) -> None:
    """Keep a log small: over the cap its content becomes PATH.1 and the file is emptied in place (writers append)."""
    try:
        if path.stat().st_size <= cap_bytes:
            return
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
    except FileNotFoundError:
        return
    except OSError as exc:
        _log.warning("cannot cap the log %s: %s", path, exc)


def die_with_parent(parent: int, number: signal.Signals) -> Callable[[], None] | None:
    """For Popen's preexec_fn: the new process gets the signal when its parent ends, however that ends. Linux only."""
    if sys.platform != "linux":
        return None

    def arrange() -> None:
        _LIBC.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent died before the arrangement

    return arrange
