"""`heliograph login`, `logout` and `whoami`: which API the commands of this person call.

May import console.commands.profiles. Never: a key on the screen.
"""

from __future__ import annotations

import sys
from typing import Annotated
from urllib.parse import urlsplit

import typer

from console.commands import profiles
from console.commands.client import Json, ProfileName, chosen
from console.commands.output import show, show_one
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from runtime.errors import SettingsError


def login(
    api: Annotated[str, typer.Argument(metavar="URL", help="Of the API.")],
    profile: ProfileName = None,
) -> None:
    """Keep the address of an API and a key for it, which is asked for, or read from stdin where that is no terminal."""
    name = profiles.checked_name(profile or profiles.DEFAULT)
    parts = urlsplit(api)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise SettingsError("the API's address is like https://notify.shop.example, without a user or a query")
    key = typer.prompt("API key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    made = profiles.Profile(api.rstrip("/"), key.strip())
    profiles.ask(made)
    profiles.write({**profiles.read(), name: made})
    typer.echo(f"{name}: {made.api}, kept in {profiles.path()}")


def logout(profile: ProfileName = None) -> None:
    """Forget a profile. The key stays valid: `heliograph keys revoke` ends it."""
    name = profile or profiles.DEFAULT
    profiles.named(name)
    profiles.write({other: it for other, it in profiles.read().items() if other != name})
    typer.echo(f"{name} is forgotten")


def whoami(profile: ProfileName = None, state_dir: StateDir = DEFAULT_STATE_DIR, as_json: Json = False) -> None:
    """Which API the commands call here, with which key's id, and whether it takes the key."""
    which, found = chosen(None, None, profile, state_dir)
    profiles.ask(found)
    show_one({"api": found.api, "key": _key_id(found.api_key), "from": which}, as_json)


def list_profiles(as_json: Json = False) -> None:
    """List the profiles that `login` keeps."""
    rows = [
        {"profile": name, "api": it.api, "key": _key_id(it.api_key)} for name, it in sorted(profiles.read().items())
    ]
    show(rows, as_json, empty="there are none: `heliograph login URL` makes one")


def _key_id(api_key: str) -> str:
    """What `heliograph keys list` shows: the part between hg_ and the secret."""
    head, _, rest = api_key.partition("_")
    return rest.partition("_")[0] if head == "hg" and "_" in rest else "?"
