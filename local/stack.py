"""Start, find and stop a local stack from outside: what `heliograph up`, `down`, `demo` and the tests call.

May import local. Never: the processes of a stack (the supervisor's own).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import LocalStackError, PortError, StartError
from local.ports import FIRST_EPHEMERAL_PORT
from local.processes import Identity, cap_log, die_with_parent, last_line
from local.supervisor.layout import PORT_NAMES
from local.supervisor.state import StateFiles, end_leftovers, make_directory
from runtime.clock import system_monotonic
from runtime.proxies import spare_loopback
from runtime.settings import read_toml

DEFAULT_STATE_DIR = Path(".heliograph")
READY_TIMEOUT_S = 180.0
"""Above the sum of the children's own limits: the first start downloads Kafka."""
STOP_TIMEOUT_S = 50.0
_POLL_S = 0.05
_HOLD_POLL_S = 0.5

Endpoints = dict[str, Any]
Progress = Callable[[str], None]


def _quiet(_: str) -> None:
    return None


@dataclass(slots=True)
class RunningStack:
    """A stack that is ready. `process` is its supervisor where this process started it."""

    state_dir: Path
    endpoints: Endpoints
    started_here: bool
    process: subprocess.Popen[bytes] | None = None


def up(
    state_dir: Path = DEFAULT_STATE_DIR,
    *,
    detach: bool = True,
    config: Path | None = None,
    ports: Mapping[str, int] | None = None,
    processes: Mapping[str, int] | None = None,
    failover: bool = False,
    initialisers: Sequence[str] = (),
    timeout_s: float = READY_TIMEOUT_S,
    progress: Progress = _quiet,
) -> RunningStack:
    """Start a stack, or find the one that runs in `state_dir`, and return once every role is ready.

    `processes`: how many of a role of layout.COUNTED. `failover`: with more simulated accounts (StackOptions).
    Not detached, the stack ends with this process, however that ends. Raises LocalStackError with the reason; then
    nothing is left running.
    """
    state_dir = state_dir.absolute()
    files = StateFiles(state_dir)
    _check(config, ports or {})
    if files.holder():
        endpoints = wait_ready(state_dir, timeout_s=timeout_s, progress=progress)
        return RunningStack(state_dir, endpoints, started_here=False)
    if files.status.exists():
        files.write_status("starting", None, files.recorded())  # the last run's failure is not this one's
    process = _start_supervisor(files, detach, config, ports or {}, processes or {}, failover, initialisers)
    try:
        endpoints = wait_ready(state_dir, process=process, timeout_s=timeout_s, progress=progress)
    except BaseException:  # KeyboardInterrupt too: an `up` that did not succeed leaves nothing running
        _end(process)
        down(state_dir)
        raise
    if process.poll() is not None:  # another `up` was faster: its stack is the one
        return RunningStack(state_dir, endpoints, started_here=False)
    return RunningStack(state_dir, endpoints, started_here=True, process=process)


def wait_ready(
    state_dir: Path,
    *,
    process: subprocess.Popen[bytes] | None = None,
    timeout_s: float = READY_TIMEOUT_S,
    progress: Progress = _quiet,
) -> Endpoints:
    """The endpoints, once the stack of `state_dir` is ready. Raises StartError with the reason when it will not be."""
    files = StateFiles(state_dir.absolute())
    deadline = system_monotonic() + timeout_s
    shown: set[str] = set()
    while True:
        status = files.read(files.status)
        if process is not None and process.poll() is not None and files.holder() is not None:
            process = None  # the directory belongs to another supervisor: its stack is as good
        ended = process.poll() is not None if process is not None else files.holder() is None
        ours = process is None or status.get("pids", {}).get("supervisor", {}).get("pid") == process.pid
        if ours and status.get("phase") == "ready" and not ended:
            return read_endpoints(state_dir)
        if ended:
            status = files.read(files.status)
            if status.get("phase") == "stopping":
                raise StartError("the stack was stopped before it was ready: start it again")
            reason = status.get("reason") or last_line(files.log("supervisor")) or "the supervisor ended at once"
            raise StartError(str(reason))
        if ours:
            for name in sorted(set(status.get("pids", {})) - shown):
                shown.add(name)
                progress(name)
        if system_monotonic() > deadline:
            raise StartError(f"the stack is not ready after {timeout_s:.0f} s: see {files.log('supervisor')}")
        time.sleep(_POLL_S)


def read_endpoints(state_dir: Path = DEFAULT_STATE_DIR) -> Endpoints:
    """The content of endpoints.json. Raises LocalStackError when no stack is up there."""
    files = StateFiles(state_dir.absolute())
    endpoints = files.read(files.endpoints) if files.holder() else {}
    if not endpoints:
        raise LocalStackError(f"no stack is up in {state_dir}: start one with `heliograph up --state-dir {state_dir}`")
    return endpoints


def down(state_dir: Path = DEFAULT_STATE_DIR, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the stack of `state_dir` and wait until nothing of it is left; False when nothing ran."""
    files = StateFiles(state_dir.absolute())
    supervisor = files.holder()
    if supervisor is not None:
        _stop_supervisor(supervisor, timeout_s)
    leftovers = end_leftovers(files) if files.status.exists() else []
    files.endpoints.unlink(missing_ok=True)
    return supervisor is not None or bool(leftovers)


def hold(stack: RunningStack) -> int:
    """Wait in the foreground until Ctrl-C, SIGTERM, or the supervisor's own end; the stack is down afterwards.

    A stack that another process started is waited for, and left running.
    """
    process = stack.process
    if process is None:
        files = StateFiles(stack.state_dir)
        while files.holder() is not None:
            time.sleep(_HOLD_POLL_S)
        return 0

    def forward(_number: int, _frame: object) -> None:
        process.terminate()

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if code != 0:
        raise LocalStackError(f"the supervisor ended with {code}: see {StateFiles(stack.state_dir).log('supervisor')}")
    return 0


def _check(config: Path | None, ports: Mapping[str, int]) -> None:
    for name, port in ports.items():
        if name not in PORT_NAMES:
            raise PortError(f"there is no --{name}-port: ports may be given for {', '.join(PORT_NAMES)}")
        if not 1024 <= port < FIRST_EPHEMERAL_PORT:
            raise PortError(f"--{name}-port {port} cannot be used: give a port from 1024 to {FIRST_EPHEMERAL_PORT - 1}")
    if config is not None:
        read_toml(config)


def _start_supervisor(
    files: StateFiles,
    detach: bool,
    config: Path | None,
    ports: Mapping[str, int],
    processes: Mapping[str, int],
    failover: bool,
    initialisers: Sequence[str],
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "local.supervisor", "--state-dir", str(files.directory)]
    if config is not None:
        command += ["--config", str(config.absolute())]
    for name, port in ports.items():
        command += [f"--{name}-port", str(port)]
    for role, count in processes.items():
        command += ["--processes", f"{role}={count}"]
    if failover:
        command += ["--failover"]
    for initialiser in initialisers:
        command += ["--initialiser", initialiser]
    log_path = files.log("supervisor")
    make_directory(log_path.parent)
    cap_log(log_path)
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Safe path: do not import a schemas.py from the folder where a user runs `up`.
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
    spare_loopback(environment)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=None if detach else die_with_parent(os.getpid(), signal.SIGTERM),
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop_supervisor(supervisor: Identity, timeout_s: float) -> None:
    supervisor.send(signal.SIGTERM)
    deadline = system_monotonic() + timeout_s
    while supervisor.is_running():
        if system_monotonic() > deadline:
            supervisor.send(signal.SIGKILL)  # its children die with it
            if system_monotonic() > deadline + 5:
                raise LocalStackError(f"the supervisor (pid {supervisor.pid}) does not end: end it and try again")
        time.sleep(_POLL_S)
