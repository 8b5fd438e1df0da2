"""`heliograph suppressions`: addresses that are never sent to, from the command line.

May import console.commands.client. Never: HTTP, what an address is.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from console.commands.client import Limit, Session, read_text, segment, with_api
from console.commands.send import IN_FLIGHT, read_bodies
from runtime.errors import SettingsError
from runtime.http.client import ApiClient, ApiError
from schemas.channels import ChannelName

MOST = 10_000_000
"""Of an export."""
_FIELDS = ("channel", "address", "reason", "expires_at")
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


@suppressions_app.command("export")
@with_api
def export_suppressions(session: Session) -> None:
    """Print every suppression as a line of JSON; `import` takes it."""
    for row in session.listed("/v1/suppressions", {}, MOST):
        typer.echo(json.dumps(row, ensure_ascii=False))


@suppressions_app.command("import")
@with_api
def import_suppressions(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="Lines of JSON; - reads stdin.")],
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Pass over lines that are refused.")] = False,
) -> None:
    """Never send to the addresses of a file: each line has a channel and an address, and may have a reason and expires_at.

    An address that is on the list stays on it. Exit status 1 when a line is refused.
    """
    bodies = [_body(number, it) for number, it in enumerate(read_bodies(read_text(source)), 1)]
    results = asyncio.run(_import(session.client, bodies, keep_going))
    refused = [result for result in results if "refused" in result]
    for result in refused:
        typer.echo(f"line {result['line']}: {result['refused']}", err=True)
    done = {"lines": len(bodies), "suppressed": len(results) - len(refused), "refused": len(refused)}
    session.show_one(done)
    raise typer.Exit(1 if refused else 0)


def _body(number: int, given: Any) -> dict[str, Any]:
    """A line as the API takes it. Raises SettingsError."""
    if not isinstance(given, dict):
        raise SettingsError(f"line {number} is no object with a channel and an address")
    return {name: given[name] for name in _FIELDS if given.get(name) is not None}


async def _import(client: ApiClient, bodies: list[dict[str, Any]], keep_going: bool) -> list[dict[str, Any]]:
    """What became of each, in order; what follows the batch of a refusal is not begun unless told to. Raises UnavailableError."""

    async def one(api: ApiClient, line: int) -> dict[str, Any]:
        try:
            return {"line": line, "id": (await api.call("POST", "/v1/suppressions", bodies[line - 1])).body["id"]}
        except ApiError as exc:
            return {"line": line, "refused": f"{exc.status} {exc.words}"}

    results: list[dict[str, Any]] = []
    async with client as api:
        for start in range(0, len(bodies), IN_FLIGHT):
            lines = range(start + 1, min(start + IN_FLIGHT, len(bodies)) + 1)
            results += await asyncio.gather(*(one(api, line) for line in lines))
            if not keep_going and any("refused" in result for result in results):
                break
    return results


@suppressions_app.command("remove")
@with_api
def unsuppress(
    session: Session, suppression_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")]
) -> None:
    """Take an address off the list: it may be sent to again."""
    session.ask("DELETE", f"/v1/suppressions/{segment(suppression_id)}")
    session.show_one({"removed": suppression_id})
