"""`heliograph suppressions`: addresses that are never sent to, from the command line.

May import console.commands.client. Never: HTTP, what an address is.
"""

from __future__ import annotations

from typing import Annotated

import typer

from console.commands.client import Api, ApiKey, Json, Limit, ask, client, listed, segment
from console.commands.output import show, show_one
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from schemas.channels import ChannelName

suppressions_app = typer.Typer(no_args_is_help=True, help="Addresses that are never sent to.")
_COLUMNS = ("id", "channel", "address", "reason", "expires_at")


@suppressions_app.command("list")
def list_suppressions(
    channel: Annotated[ChannelName | None, typer.Option("--channel", help="Of this channel.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="With this reason.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Of this address, in any spelling.")] = None,
    limit: Limit = 25,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """List suppressions, the newest first."""
    query = {"channel": channel, "reason": reason, "address": address}
    found = listed(client(api, api_key, state_dir), "/v1/suppressions", query, limit)
    rows = found if as_json else [{name: row.get(name) for name in _COLUMNS} for row in found]
    show(rows, as_json, empty="there are no such suppressions")


@suppressions_app.command("add")
def suppress(
    channel: Annotated[ChannelName, typer.Argument(metavar="CHANNEL", help="Of which it is an address.")],
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="In any spelling.")],
    reason: Annotated[str, typer.Option("--reason", help="As it is to be recorded.")] = "manual",
    expires_at: Annotated[
        str | None, typer.Option("--expires-at", metavar="TIME", help="RFC 3339; it ends by itself then.")
    ] = None,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Never send to an address."""
    body = {"channel": channel, "address": address, "reason": reason}
    if expires_at is not None:
        body["expires_at"] = expires_at
    show_one(ask(client(api, api_key, state_dir), "POST", "/v1/suppressions", body), as_json)


@suppressions_app.command("remove")
def unsuppress(
    suppression_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")],
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Take an address off the list: it may be sent to again."""
    ask(client(api, api_key, state_dir), "DELETE", f"/v1/suppressions/{segment(suppression_id)}")
    typer.echo("removed")
