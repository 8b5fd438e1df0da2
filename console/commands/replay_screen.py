"""What replay and dlq say on the screen: the table of a plan, what a what-if found, the question, the progress.

May import rich, typer and console.commands.output. Never: a decision.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from console.commands.output import plain, show
from replay.plan import Decision, Plan
from replay.times import UsageError

if TYPE_CHECKING:
    from replay.whatif import WhatIfResult  # loads the router's code

ProgressCallback = Callable[[int, int], None]
MAX_SHOWN = 20
"""Differences on the screen; --json has them all."""


@contextmanager
def progress(words: str, quiet: bool) -> Iterator[ProgressCallback]:
    """A bar on a terminal, nothing for programs; call it with (done, of)."""
    if quiet or not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def show_plan(plan: Plan, kind: str) -> None:
    """The table and what follows from it."""
    rows = [{**row, "samples": "\n".join(row["samples"])} for row in plan.rows()]
    show(rows, False, empty="nothing is selected")
    tried = plan.messages(Decision.TRY)
    again = plan.messages(Decision.SEND_AGAIN)
    sent = plan.messages(Decision.SENT, Decision.MAYBE_SENT)
    parts = [f"{plan.looked_at} {kind} looked at"]
    if plan.unreadable:
        parts.append(f"{plan.unreadable} of them do not decode")
    if plan.other_templates:
        parts.append(f"{plan.other_templates} of another template left out")
    if plan.pinned:
        parts.append(f"{plan.pinned} requests name another version, and are rendered with this one all the same")
    if again:
        parts.append(f"{again} messages will be SENT AGAIN, as new messages")
    parts.append(f"{tried} will be tried")
    if sent:
        parts.append(f"{sent} were sent already, or may have been, and will not be sent again")
    typer.echo(f"{'; '.join(parts)}. {len(plan.items)} records to publish.")


def confirm(records: int, rate: float, yes: bool, as_json: bool) -> bool:
    """Whether the operator agrees to publish them. Raises UsageError without a terminal to ask at."""
    seconds = records / rate
    return agreed(f"Publish {records} records at {rate:g} a second (about {seconds:.0f} s)?", yes, as_json)


def agreed(question: str, yes: bool, as_json: bool) -> bool:
    """Whether the operator agrees. Raises UsageError without a terminal to ask at."""
    if yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise UsageError("nothing was done: give --yes, or --dry-run to only look (there is no terminal to ask at)")
    return typer.confirm(question)


def show_what_if(report: WhatIfResult, as_json: bool) -> None:
    """What another template version or account would change."""
    if as_json:
        typer.echo(json.dumps(report.as_object(), ensure_ascii=False))
        return
    if report.template is not None:
        _show_differences(report)
    if report.account is not None:
        for line in report.account.text():
            typer.echo(line)
    typer.echo("Nothing was published.")


def _show_differences(report: WhatIfResult) -> None:
    for one in report.differences[:MAX_SHOWN]:
        typer.echo(plain(f"{one.notification_id} {one.channel}: {one.before} -> {one.after}"))
        if one.diff:
            typer.echo(plain(one.diff))
    if len(report.differences) > MAX_SHOWN:
        typer.echo(f"... and {len(report.differences) - MAX_SHOWN} more; --json shows them all")
    typer.echo(
        f"With {report.template}: {report.unchanged} unchanged, {report.changed} changed, {report.failed} would fail, "
        f"{report.mended} would no longer fail; {report.other_templates} requests use another template."
    )
    pinned = (
        f"; {report.pinned} of them name another version, which a replay without --template keeps"
        if report.pinned
        else ""
    )
    typer.echo(f"`replay --template {report.template}` would publish {report.would_publish} requests{pinned}.")
