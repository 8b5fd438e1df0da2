"""`heliograph status`: the outcome of a notification, from the command line.

May import console.commands.client. Never: HTTP, a state's meaning.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from console.commands.client import Session, with_api
from console.commands.output import show
from runtime.http.client import ApiClient
from schemas.events import states

_POLL_S = 0.3


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
    body = asyncio.run(_follow(session.client, path, as_json)) if follow else session.ask("GET", path)
    if as_json:
        typer.echo(
            json.dumps(body, indent=2, ensure_ascii=False) if not follow else json.dumps(body, ensure_ascii=False)
        )
        return
    typer.echo(f"{body['id']}  {body['status']}{_because(body['reason'])}  accepted {body['accepted_at']}")
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


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


async def _follow(calls: ApiClient, path: str, as_json: bool) -> Any:
    """Print events as they come; returns the notification once it is settled."""
    shown: set[str] = set()
    async with calls as api:
        while True:
            body = (await api.call("GET", path)).body
            for event in (await api.call("GET", f"{path}/events")).body["entries"]:
                if event["id"] not in shown:
                    shown.add(event["id"])
                    typer.echo(json.dumps(event, ensure_ascii=False) if as_json else _line(event))
            if body["status"] in states().settled:
                return body
            await asyncio.sleep(_POLL_S)


def _line(event: dict[str, Any]) -> str:
    what = " ".join(str(event[key]) for key in ("channel", "state") if event.get(key))
    where = f" via {event['provider']}" if event.get("provider") else ""
    return f"{event['occurred_at']}  {what}{_because(event.get('reason'))}{where}"
