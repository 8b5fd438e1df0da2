"""`heliograph sink rebuild`: ClickHouse again from the topics.

May import typer and sinks. Never: how a record becomes a row.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from console.commands import replay_screen, replay_targets
from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from runtime.status import rfc3339
from schemas.topics import catalogue
from sinks.rebuild import contents
from sinks.rebuild import rebuild as rebuild_store

sink_app = typer.Typer(no_args_is_help=True, help="What ClickHouse holds, against the topics.")
LOST = (
    "What is older than its topic keeps it cannot be stored again, and stays if ClickHouse has it. Prices come with the next start of a "
    "sink, sums of closed hours within minutes."
)


@sink_app.command("rebuild")
def rebuild(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show from when on it can, and how much it is.")
    ] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Store again what the topics hold, after ClickHouse lost it; beside running sinks, and as often as you like."""
    settings = replay_targets.settings_for(state_dir)
    held = contents(settings)
    rows: list[dict[str, Any]] = [
        {
            "topic": one.topic,
            "table": one.table,
            "records": one.records,
            "oldest": None if one.oldest_at is None else rfc3339(one.oldest_at),
            "kept_days": catalogue()[one.topic].retention_days,
        }
        for one in held
    ]
    if not as_json:
        show(rows, False)
        typer.echo(LOST)
    if dry_run:
        typer.echo(json.dumps({"dry_run": True, "topics": rows}) if as_json else "A dry run: nothing was stored.")
        return
    with replay_screen.progress("storing", as_json) as on_progress:
        counts = rebuild_store(settings, on_progress)
    if as_json:
        typer.echo(json.dumps({"dry_run": False, "topics": rows, "stored": counts}))
        return
    undecodable = counts.pop("undecodable")
    words = ", ".join(f"{count:,} of {table}" for table, count in counts.items() if count)
    typer.echo(f"Stored: {words or 'nothing'}; {undecodable:,} records were no rows.")
