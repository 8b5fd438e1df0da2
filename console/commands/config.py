"""`heliograph config`: what the settings come to, and whether they can be right, before a role is started on them.

May import runtime.settings and vendors, lazily. Never: a store, a vendor that is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, SecretStr

from console.commands.client import Json
from console.commands.doctor_accounts import built_accounts, check_accounts
from console.commands.findings import Level
from console.commands.output import show
from console.commands.redaction import redacted, secrets_of
from runtime.settings import DEFAULT_FILE, PREFIX, load_settings, read_toml

config_app = typer.Typer(no_args_is_help=True, help="Settings.")
File = Annotated[
    Path | None, typer.Option("--file", help="Of this file, as if HELIOGRAPH_CONFIG named it.", dir_okay=False)
]
_HIDDEN = "********"


@config_app.command()
def check(file: File = None, as_json: Json = False) -> None:
    """Read the settings as a role does, and construct every account. Exit status 1 when something is wrong."""
    _use(file)
    settings = load_settings()
    built, refused = built_accounts(settings.providers)
    secrets = set(secrets_of(settings))
    findings = [redacted(finding, secrets) for finding in check_accounts(settings, built, refused)]
    rows = [{name: it[name] for name in ("level", "what", "fix")} for it in map(asdict, findings)]
    show(rows, as_json)
    raise typer.Exit(1 if any(finding.level is Level.PROBLEM for finding in findings) else 0)


@config_app.command("show")
def show_config(file: File = None, as_json: Json = False) -> None:
    """Every setting with its value and where that comes from; secrets are hidden."""
    _use(file)
    settings = load_settings()
    named = Path(os.environ.get(f"{PREFIX}CONFIG", DEFAULT_FILE))
    tables = read_toml(named) if named.exists() else {}
    show(list(_rows(settings, tables, str(named))), as_json)


def _use(file: Path | None) -> None:
    if file is not None:
        os.environ[f"{PREFIX}CONFIG"] = str(file)


def _rows(
    model: BaseModel, tables: Mapping[str, Any], file: str, path: tuple[str, ...] = ()
) -> Iterator[dict[str, Any]]:
    """A row for each setting below `path`; the accounts are `heliograph providers list`."""
    for name, value in model:
        here = (*path, name)
        inner = tables.get(name) if isinstance(tables, Mapping) else None
        if isinstance(value, BaseModel):
            yield from _rows(value, inner if isinstance(inner, Mapping) else {}, file, here)
        elif here != ("providers",):
            variable = PREFIX + "__".join(here).upper()
            given = {known.upper() for known in os.environ}
            whole = PREFIX + here[0].upper()
            origin = (
                variable if variable in given else whole if whole in given else file if name in tables else "default"
            )
            yield {"setting": ".".join(here), "value": _shown(value, name), "from": origin}


def _shown(value: Any, name: str) -> str:
    if isinstance(value, SecretStr) and not value.get_secret_value():
        return ""
    return _HIDDEN if any(secrets_of(value, name)) else str(value)
