"""`heliograph status`: the outcome of a notification, from the command line.

May import console.commands.client. Never: HTTP, a state's meaning.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any
from urllib.parse import quote

import typer

from console.commands.client import Session, with_api
from console.commands.output import because, show
from console.commands.watch import facts, line
from runtime.http.client import ApiClient


@with_api
def status(
    session: Session,
    notification_id: Annotated[str, typer.Argument(metavar="ID")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print every event until no message is in flight.")
    ] = False,
) -> None:
    """Show the status of a notification and of its messages."""
    path, as_json = f"/v1/notifications/{notification_id}", session.as_json
    body = asyncio.run(_follow(session.client, notification_id, as_json)) if follow else session.ask("GET", path)
    if as_json:
        typer.echo(
            json.dumps(body, indent=2, ensure_ascii=False) if not follow else json.dumps(body, ensure_ascii=False)
        )
        return
    typer.echo(f"{body['id']}  {body['status']}{because(body['reason'])}  accepted {body['accepted_at']}")
    rows = [
        {
            "channel": m["channel"],
            "status": m["status"],
            "reason": m["reason"],
            "provider": m["provider"],
            "attempts": len(m["attempts"]),
            "possible duplicate": "yes" if m["possible_duplicate"] else "",
        }
        for m in body["messages"]
    ]
    if rows:
        show(rows, False)


async def _follow(calls: ApiClient, notification_id: str, as_json: bool) -> Any:
    """Print events as they come; returns the notification once it is settled."""
    async with calls as api:
        async for event, _ in facts(api, f"/v1/stream?notification_id={quote(notification_id, safe='')}&until=settled"):
            typer.echo(json.dumps(event, ensure_ascii=False) if as_json else line(event))
        return (await api.call("GET", f"/v1/notifications/{quote(notification_id, safe='')}")).body
