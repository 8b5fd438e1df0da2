"""`heliograph keys`: make, list and revoke API keys.

May import typer; PostgreSQL's client only when a command needs it. Never: a secret but the one just made.
"""

from __future__ import annotations

from typing import Annotated

import typer

from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, settings_for
from runtime.errors import SettingsError

keys_app = typer.Typer(no_args_is_help=True, help="API keys.")


@keys_app.command("create")
def create_key(
    tenant: Annotated[str, typer.Option("--tenant", help="Whose key it is.")],
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Make an API key and print it: it cannot be shown again."""
    from producers.reference.keys import create_api_key

    settings = settings_for(state_dir)
    dsn, pepper = settings.postgres.dsn.get_secret_value(), settings.api.key_pepper
    try:
        typer.echo(create_api_key(dsn, tenant, name, pepper=pepper))
    except ValueError as exc:
        raise SettingsError(str(exc)) from exc


@keys_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Every key's id, tenant and name, newest first; the secrets are nowhere."""
    from producers.reference.keys import list_api_keys

    keys = list_api_keys(settings_for(state_dir).postgres.dsn.get_secret_value(), tenant)
    show([key._asdict() for key in keys], as_json, empty="there are no keys")


@keys_app.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The part between hg_ and the secret.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Make a key that takes another one's place, and print it. Both are valid until the old one is revoked."""
    from producers.reference.keys import create_api_key, list_api_keys

    settings = settings_for(state_dir)
    dsn = settings.postgres.dsn.get_secret_value()
    old = next((key for key in list_api_keys(dsn, None) if key.id == key_id and key.revoked_at is None), None)
    if old is None:
        raise SettingsError("there is no such key, or it is revoked")
    typer.echo(create_api_key(dsn, old.tenant, old.name, pepper=settings.api.key_pepper))
    typer.echo(f"once nobody uses the old one any more: heliograph keys revoke {key_id}", err=True)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The part between hg_ and the secret.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Revoke an API key; effective within a second."""
    from producers.reference.keys import revoke_api_key

    if not revoke_api_key(settings_for(state_dir).postgres.dsn.get_secret_value(), key_id):
        raise SettingsError("there is no such key, or it is revoked already")
    typer.echo("revoked")
