"""`heliograph suppressions`: addresses that are never sent to, from the command line.

May import console.commands.client. Never: HTTP, what an address is.
"""

from __future__ import annotations

from typing import Annotated

import typer

from console.commands.client import Limit, Session, segment, with_api
from schemas.channels import ChannelName

suppressions_app = typer.Typer(no_args_is_help=True, help="Addresses that are never sent to.")


@suppressions_app.command("list")
@with_api
def list_suppressions(
    session: Session,
    channel: Annotated[ChannelName | None, typer.Option("--channel", help="Of this channel.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="With this reason.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Of this address, in any spelling.")] = None,
    limit: Limit = 25,
) -> None:
    """List suppressions, the newest first."""
    query = {"channel": channel, "reason": reason, "address": address}
    found = session.listed("/v1/suppressions", query, limit)
    session.show(found, ("id", "channel", "address", "reason", "expires_at"), empty="there are no such suppressions")


@suppressions_app.command("add")
@with_api
def suppress(
    session: Session,
    channel: Annotated[ChannelName, typer.Argument(metavar="CHANNEL", help="Of which it is an address.")],
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="In any spelling.")],
    reason: Annotated[str, typer.Option("--reason", help="As it is to be recorded.")] = "manual",
    expires_at: Annotated[
        str | None, typer.Option("--expires-at", metavar="TIME", help="RFC 3339; it ends by itself then.")
    ] = None,
) -> None:
    """Never send to an address."""
    until = {} if expires_at is None else {"expires_at": expires_at}
    body = {"channel": channel, "address": address, "reason": reason, **until}
    session.show_one(session.ask("POST", "/v1/suppressions", body))


@suppressions_app.command("remove")
@with_api
def unsuppress(
    session: Session, suppression_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]
) -> None:
    """Take an address off the list: it may be sent to again."""
    session.ask("DELETE", f"/v1/suppressions/{segment(suppression_id)}")
    session.show_one({"removed": suppression_id})
