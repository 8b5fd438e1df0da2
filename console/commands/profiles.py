"""APIs that a person works with, by name: `heliograph login`, `whoami`, `logout`, and what --profile names.

    $XDG_CONFIG_HOME/heliograph/profiles.json   {"default": {"api": "https://notify.shop.example", "api_key": "hg_…"}}

Only its owner may read the file: others' rights are taken away when it is written, and one that others can read is refused.
May import runtime.http.client. Never: a local stack.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from runtime.errors import SettingsError
from runtime.http.client import ApiClient, ApiError

DEFAULT = "default"
VARIABLE = "HELIOGRAPH_PROFILE"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ASKED = "/v1/templates?limit=1"
"""Needs a key and changes nothing."""


class Profile(NamedTuple):
    """Where, and with which key."""

    api: str
    api_key: str


def path() -> Path:
    """The file of profiles."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "heliograph" / "profiles.json"


def read() -> dict[str, Profile]:
    """Every profile by its name; none where there is no file. Raises SettingsError."""
    file = path()
    try:
        if file.stat().st_mode & 0o077:
            raise SettingsError(f"{file} holds API keys and others may read it: run `chmod 600 {file}`")
        given = json.loads(file.read_text("utf-8"))
        return {name: Profile(str(it["api"]), str(it["api_key"])) for name, it in given.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise SettingsError(f"{file} does not hold profiles: {exc}; remove it, and `heliograph login` again") from exc


def write(profiles: Mapping[str, Profile]) -> None:
    """Replace the file at once; only its owner may read it. Raises SettingsError."""
    file = path()
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.touch(0o600, exist_ok=False)
        new.write_text(json.dumps({name: it._asdict() for name, it in sorted(profiles.items())}, indent=2), "utf-8")
        new.replace(file)
    except OSError as exc:
        new.unlink(missing_ok=True)
        raise SettingsError(f"cannot write {file}: {exc}") from exc


def named(name: str) -> Profile:
    """Raises SettingsError where there is none of that name."""
    profiles = read()
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise SettingsError(
            f"there is no profile {name}; there are {known}: `heliograph login --profile {name}` makes it"
        )
    return profiles[name]


def checked_name(name: str) -> str:
    """Raises SettingsError."""
    if not _NAME.fullmatch(name):
        raise SettingsError("a profile's name has 1 to 64 letters, digits, dots, hyphens and underscores")
    return name


def ask(profile: Profile) -> None:
    """Make a call that needs the key. Raises SettingsError where the API refuses it, UnavailableError without an answer."""

    async def once() -> None:
        async with ApiClient(profile.api, profile.api_key, timeout_s=15) as api:
            await api.call("GET", _ASKED)

    try:
        asyncio.run(once())
    except ApiError as exc:
        if exc.status in (401, 403):
            raise SettingsError(f"{profile.api} refuses the key: make one with `heliograph keys create`") from exc
        raise
