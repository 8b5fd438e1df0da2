"""`heliograph top`: what happens now, on one screen: the last minutes by account, what waits, and what is down.

May import sinks.clickhouse and runtime.kafka, lazily. Never: a query of its own.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any, NamedTuple

import typer

from console.commands.client import Json
from console.commands.lag import GroupLag, lags
from console.commands.output import plain, show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, settings_for
from runtime.settings import Settings


class Now(NamedTuple):
    """One screen."""

    minutes: list[dict[str, Any]]
    """Rows of sinks/queries/last_minutes.sql."""
    groups: list[GroupLag]
    down: list[dict[str, Any]]
    """Rows of sinks/queries/conditions.sql."""


def top(
    minutes: Annotated[int, typer.Option(min=1, max=60, help="Look back so many minutes.")] = 5,
    every_s: Annotated[float, typer.Option("--every", min=1, help="Seconds between two looks.")] = 5,
    once: Annotated[bool, typer.Option("--once", help="Look once, as where the output is no terminal.")] = False,
    as_json: Json = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """What happens now: messages of the last minutes by account, records that wait, accounts and stages that are down."""
    settings = settings_for(state_dir)
    if once or as_json or not sys.stdout.isatty():
        _print(_look(settings, minutes), minutes, as_json)
        return
    from rich.console import Console  # a role's start does not pay for it

    screen = Console()
    try:
        while True:
            seen = _look(settings, minutes)
            screen.clear()
            _print(seen, minutes, as_json)
            time.sleep(every_s)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _look(settings: Settings, minutes: int) -> Now:
    """Raises UnavailableError or StoreError."""
    from runtime.kafka.admin import Admin
    from sinks.clickhouse import connect, select

    where = settings.clickhouse
    client = connect(where, timeout_s=30)
    try:
        rows = select(where, client, "last_minutes", {"minutes": minutes})
        down = select(where, client, "conditions")
    finally:
        client.close()
    return Now(rows, list(lags(Admin(settings.kafka))), down)


def _print(now: Now, minutes: int, as_json: bool) -> None:
    if as_json:
        seen = {"minutes": now.minutes, "groups": [it._asdict() for it in now.groups], "down": now.down}
        sys.stdout.write(json.dumps(seen, indent=2, ensure_ascii=False) + "\n")
        return
    requests = sum(row["requests"] for row in now.minutes)
    typer.echo(f"the last {minutes} minutes: {requests:,} requests")
    accounts = [
        {
            "channel": row["channel"],
            "account": row["account"],
            "sent": row["sent"],
            "retried": row["retried"],
            "refused": row["refused"],
            "p95 ms": row["latency_ms_p95"],
            "last error": (row["last_error"] or "")[:40],
        }
        for row in now.minutes
        if row["account"]
    ]
    show(accounts, as_json, empty="no account was asked")
    typer.echo("")
    waiting = [it._asdict() for it in now.groups if it.unread]
    show(waiting, as_json, empty="every consumer group has read everything")
    for row in now.down:
        typer.echo(plain(f"down: {row['subject']} {row['name']}: {row['detail']}"))
