"""Where replay and dlq work: the settings, or the local stack that runs in a directory; and who asks.

May import console.doctor's way of finding a stack, runtime. What never enters here: a store.
"""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

from console.doctor import target_of
from console.local import LocalStackError
from console.local.stack import read_endpoints
from runtime.logs import configure_logs
from runtime.registry import use_wire_ids
from runtime.settings import Settings, load_settings


def settings_for(state_dir: Path) -> Settings:
    """The settings found, moved to the stores of the local stack where one runs in `state_dir`."""
    configure_logs("replay", "warning")  # to stderr: what is printed is the answer
    settings = load_settings()
    try:
        endpoints = read_endpoints(state_dir)
    except LocalStackError:
        endpoints = {}
    if endpoints:
        settings = target_of(settings, state_dir, endpoints, None, None).settings
    use_wire_ids(settings)
    return settings


def who() -> str:
    """Who runs this command, for the record of it."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user need not have a name
        return f"unknown@{socket.gethostname()}"
