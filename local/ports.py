"""Free ports on loopback for the embedded stack, kept for as long as the stack lives.

A port is reserved twice: by a lock file that every stack of this user honours (so two stacks that start at once never
choose the same one, and a port stays reserved while its process restarts), and by a test bind (for everyone else).

May import the standard library and local. Never: which process gets which port.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

from local import PortError

LOOPBACK = "127.0.0.1"
FIRST_PORT = 20_000
FIRST_EPHEMERAL_PORT = 32_768
"""From here up the kernel hands ports to outgoing connections: a listener that restarts could find its port gone."""
_ATTEMPTS = 500


def cache_dir() -> Path:
    """The per-user cache of the local stack: HELIOGRAPH_CACHE_DIR, else heliograph/ in the user's cache directory."""
    own = os.environ.get("HELIOGRAPH_CACHE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "heliograph"


def is_free(port: int) -> bool:
    """Whether a listener could bind `port` on loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # connections of a process that just died linger in TIME_WAIT: they must not count as "in use"
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


class PortBook:
    """The ports of one stack. They stay reserved until `close`, or until the process dies."""

    def __init__(self, directory: Path | None = None, free: Callable[[int], bool] = is_free) -> None:
        self._directory = directory or cache_dir() / "ports"
        self._free = free
        self._held: dict[str, tuple[int, int]] = {}
        self._random = random.Random()

    def reserve(self, name: str, wanted: int | None = None) -> int:
        """A port for `name`: `wanted`, or any free one. Raises PortError when `wanted` cannot be had."""
        if wanted is not None:
            return self._reserve_wanted(name, wanted)
        for _ in range(_ATTEMPTS):
            port = self._random.randrange(FIRST_PORT, FIRST_EPHEMERAL_PORT)
            if self._take(name, port):
                return port
        raise PortError(f"no free port for {name} in {FIRST_PORT}-{FIRST_EPHEMERAL_PORT - 1}: stop other local stacks")

    def _reserve_wanted(self, name: str, port: int) -> int:
        option = f"--{name}-port"
        if not 1024 <= port < FIRST_EPHEMERAL_PORT:
            raise PortError(
                f"{option} {port} cannot be used: give a port from 1024 to {FIRST_EPHEMERAL_PORT - 1}"
                " (higher ones are handed to outgoing connections)"
            )
        if not self._take(name, port):
            raise PortError(f"{option} {port} is in use: stop what listens there, or give another {option}")
        return port

    def _take(self, name: str, port: int) -> bool:
        self._directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._directory / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        if not self._free(port):
            os.close(handle)
            return False
        self._held[name] = (port, handle)
        return True

    def close(self) -> None:
        """Give every port back."""
        for _, handle in self._held.values():
            os.close(handle)  # the file stays: unlinking it would let two stacks lock two files of one name
        self._held.clear()
