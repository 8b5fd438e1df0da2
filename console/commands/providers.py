"""`heliograph providers`: the accounts of the settings, what their processes say of them, and what their vendors answer.

May import vendors and sinks.clickhouse, lazily. Never: a message, a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from console.commands.client import Json
from console.commands.doctor_probes import probe_all
from console.commands.findings import Level
from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, settings_for
from runtime.errors import HeliographError, SettingsError
from runtime.settings import ClickHouseSettings, ProviderSettings

providers_app = typer.Typer(no_args_is_help=True, help="Accounts at vendors.")


@providers_app.command("list")
def list_providers(as_json: Json = False, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """List the accounts in their order of failover, with what is down now."""
    settings = settings_for(state_dir)
    down = _down(settings.clickhouse)
    rows = [
        {
            "name": it.name,
            "channel": it.channel,
            "kind": it.kind,
            "max_in_flight": it.max_in_flight,
            "rate_per_second": it.rate_per_second,
            "down": None if down is None else down.get(it.name, ""),
        }
        for it in settings.providers
    ]
    show(rows, as_json, empty="there are no [[providers]] in the settings")


def _down(settings: ClickHouseSettings) -> dict[str, str] | None:
    """Why, by account; None where ClickHouse cannot be asked, which is said on stderr."""
    from sinks.clickhouse import connect, select

    try:
        client = connect(settings, timeout_s=10)
        try:
            rows = select(settings, client, "conditions")
        finally:
            client.close()
    except HeliographError as exc:
        typer.echo(f"what is down is not known: {exc}", err=True)
        return None
    return {row["name"]: row["detail"] for row in rows if row["subject"] == "account"}


@providers_app.command("test")
def test_providers(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="All unless given.")] = None,
    as_json: Json = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Ask each vendor whether it takes the account's credentials; nothing is sent. Exit status 1 when one does not."""
    findings = list(probe_all(_chosen(settings_for(state_dir).providers, names or [])))
    rows = [{name: it[name] for name in ("level", "what", "fix")} for it in map(asdict, findings)]
    show(rows, as_json, empty="there are no [[providers]] in the settings")
    raise typer.Exit(1 if any(it.level is Level.PROBLEM for it in findings) else 0)


def _chosen(providers: Sequence[ProviderSettings], names: Sequence[str]) -> list[ProviderSettings]:
    """Raises SettingsError for a name that none has."""
    if unknown := sorted(set(names) - {it.name for it in providers}):
        known = ", ".join(it.name for it in providers) or "none"
        raise SettingsError(f"there is no account {', '.join(unknown)} in the settings; there are {known}")
    return [it for it in providers if not names or it.name in names]
