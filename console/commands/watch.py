"""`heliograph watch`: facts as they happen, of notifications or of a whole tenant.

May import console.commands.client. Never: HTTP, a state's meaning.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from console.commands.client import Session, with_api
from console.commands.output import because
from runtime.errors import UnavailableError
from runtime.http.client import ApiClient, LiveEvent

_PATH = "/v1/stream"


@with_api
def watch(
    session: Session,
    notification_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Of notifications; without one, all of the tenant's.")
    ] = None,
    state: Annotated[str | None, typer.Option("--state", help="Without an ID: only facts of this state.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Without an ID: only of this channel.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Without an ID: only to this user.")] = None,
) -> None:
    """Print every fact as it happens: of notifications until all are settled, of a tenant until you stop it."""
    ids = notification_ids or []
    filters = {"state": state, "channel": channel, "user_id": user}
    query = [("notification_id", one) for one in ids] + [(name, value) for name, value in filters.items() if value]
    if ids:
        query.append(("until", "settled"))
    asyncio.run(_watch(session, f"{_PATH}?{urlencode(query)}", named=len(ids) != 1))


async def _watch(session: Session, path: str, *, named: bool) -> None:
    async with session.client as api:
        async for event, notification_id in facts(api, path):
            if session.as_json:
                typer.echo(json.dumps({"notification_id": notification_id, **event}, ensure_ascii=False))
            else:
                typer.echo((f"{notification_id}  " if named else "") + line(event))


async def facts(api: ApiClient, path: str) -> AsyncIterator[tuple[dict[str, Any], str]]:
    """(a fact, the id of its notification), each once, until the stream is over. Raises ApiError or UnavailableError."""
    seen: OrderedDict[str, set[str]] = OrderedDict()
    async for sent in api.events(path):
        for event, notification_id in _in(sent):
            if event["id"] not in seen.setdefault(notification_id, set()):
                seen[notification_id].add(event["id"])
                yield event, notification_id
        while len(seen) > _MAX_SEEN:
            seen.popitem(last=False)


_MAX_SEEN = 10_000
"""Notifications whose facts are remembered: a tenant's stream has no end."""


def _in(sent: LiveEvent) -> list[tuple[dict[str, Any], str]]:
    data = sent.data
    if sent.kind == "snapshot" and data["notification"] is not None:
        return [(event, data["notification"]["id"]) for event in data["events"]]
    if sent.kind == "status":
        return [(data["event"], data["notification"]["id"])]
    if sent.kind == "gap":
        typer.echo(f"... {data['missed']} facts are left out: they came faster than they were read", err=True)
    if sent.kind == "reset":
        typer.echo("... the connection was lost for too long: what happened meanwhile is left out", err=True)
    if sent.kind == "end" and data["reason"] == "not_found":
        raise UnavailableError("there is no such notification")
    return []


def line(event: dict[str, Any]) -> str:
    """A fact, for people."""
    what = " ".join(str(event[key]) for key in ("channel", "state") if event.get(key))
    where = f" via {event['provider']}" if event.get("provider") else ""
    return f"{event['occurred_at']}  {what}{because(event.get('reason'))}{where}"
