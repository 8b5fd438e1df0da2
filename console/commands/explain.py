"""`heliograph explain`: the whole story of a notification, as the API returns it.

May import console.commands.client and rich. Never: a fact, a reason's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from console.commands.client import Session, with_api
from console.commands.output import plain

_COLOURS = {"acceptance": "cyan", "decision": "blue", "attempt": "yellow", "dead letter": "red", "operator": "magenta"}


@with_api
def explain(session: Session, notification_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Show the whole story of a notification: who, what was decided and why, every attempt, how long each took."""
    story = session.ask("GET", f"/v1/notifications/{notification_id}/explain")
    if session.as_json:
        session.show_one(story)
    else:
        show_story(story)


def show_story(story: Mapping[str, Any]) -> None:
    """Print it for people."""
    from rich.console import Console
    from rich.markup import escape as without_markup
    from rich.table import Table

    def escape(text: str) -> str:
        return without_markup(plain(text))

    console = Console(highlight=False)
    console.print(f"[bold]{story['id']}[/]  [bold]{story['status']}[/]")
    console.print(escape(story["why"]))
    table = Table(box=None, show_header=False, pad_edge=False)
    for style in ("dim", "dim", "", "", ""):
        table.add_column(style=style, overflow="fold")
    for line in story["timeline"]:
        stage = line["stage"]
        table.add_row(
            line["at"],
            f"+{line['after_ms'] / 1000:.3f} s",
            f"[{_COLOURS.get(stage, 'green')}]{stage}[/]",
            line["channel"] or "",
            escape(line["what"]),
        )
    console.print(table)
    for message in story["messages"]:
        took = "; ".join(
            f"{name.replace('_', ' ')} {value} ms" for name, value in message["took_ms"].items() if value is not None
        )
        console.print(f"[bold]{message['channel']}[/] {message['id']}: {escape(message['why'])}")
        console.print(f"  took: {took or 'nothing yet'}")
        for attempt in message["attempts"]:
            if attempt["next_because"]:
                after = attempt["next_after_ms"]
                wait = "waits" if after is None else f"waited {after / 1000:.3f} s"
                console.print(f"  after attempt {attempt['attempt']} {wait}: {escape(attempt['next_because'])}")
        if message["duplicate_because"]:
            console.print(f"  possible duplicate: {escape(message['duplicate_because'])}")
    for resend in story["resends"]:
        console.print(
            f"sent again as generation {resend['generation']} by {escape(resend['source'] or 'an unnamed source')}"
        )
