"""`heliograph send` and `heliograph status`: a notification from the command line.

May import console.commands.client and console.commands.producers. Never: HTTP, a state's meaning.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from console.commands.client import ApiClient, client
from console.commands.output import show
from console.commands.producers import Api, ApiKey, FileOrDash
from console.commands.producers import send as send_to
from console.commands.stack import DEFAULT_STATE_DIR, read_endpoints
from schemas.events import states

StateDir = Annotated[Path, typer.Option(help="Where the local stack keeps its endpoints.json.")]
_POLL_S = 0.3


def send(source: FileOrDash, api: Api = None, api_key: ApiKey = None, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Send notifications (JSON or JSONL in the shape of the API) and print an id per line, in order."""
    send_to(source, api, api_key, endpoints=lambda: read_endpoints(state_dir))


def status(
    notification_id: Annotated[str, typer.Argument(metavar="ID")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print every event until no message is in flight.")
    ] = False,
    api: Api = None,
    api_key: ApiKey = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the status of a notification and of its messages."""
    calls = client(api, api_key, state_dir)
    path = f"/v1/notifications/{notification_id}"
    body = calls.call("GET", path)
    if follow:
        body = _follow(calls, path, as_json)
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


def _follow(calls: ApiClient, path: str, as_json: bool) -> Any:
    """Print events as they come; returns the notification once it is settled."""
    shown: set[str] = set()
    while True:
        body = calls.call("GET", path)
        for event in calls.call("GET", f"{path}/events")["entries"]:
            if event["id"] not in shown:
                shown.add(event["id"])
                typer.echo(json.dumps(event, ensure_ascii=False) if as_json else _line(event))
        if body["status"] in states().settled:
            return body
        time.sleep(_POLL_S)


def _line(event: dict[str, Any]) -> str:
    what = " ".join(str(event[key]) for key in ("channel", "state") if event.get(key))
    where = f" via {event['provider']}" if event.get("provider") else ""
    return f"{event['occurred_at']}  {what}{_because(event.get('reason'))}{where}"
