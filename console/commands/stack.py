"""The local stack that a command works on, where one runs in its directory; an image without `local/` knows none.

May import local, but only when it is needed. Never: a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.errors import HeliographError, UnavailableError
from runtime.settings import Settings, load_settings

DEFAULT_STATE_DIR = Path(".heliograph")
StateDir = Annotated[Path, typer.Option(help="A local stack's directory; what runs there is used.")]


def has_local() -> bool:
    """Whether this installation can run a local stack. A user's own package of this name does not count."""
    try:
        return find_spec("local.stack") is not None
    except ImportError:
        return False


def read_endpoints(state_dir: Path) -> Mapping[str, Any]:
    """Where the stack in `state_dir` listens. Raises HeliographError where none is up."""
    if not has_local():
        raise UnavailableError("this installation has no local stack: name the API with --api and --api-key")
    from local.stack import read_endpoints as read

    return read(state_dir)


def stack_settings(settings: Settings, state_dir: Path, endpoints: Mapping[str, Any]) -> Settings:
    """The settings, moved to a stack's own stores, pepper and providers."""
    from local.settings import stack_settings as moved

    return moved(settings, state_dir, endpoints)


def settings_for(state_dir: Path) -> Settings:
    """The settings found, moved to the local stack where one runs in `state_dir`. Raises SettingsError."""
    settings = load_settings()
    try:
        endpoints = read_endpoints(state_dir)
    except HeliographError:
        return settings
    return stack_settings(settings, state_dir, endpoints)
