"""What replay and dlq say on the screen: the table of a plan, the question, the progress.

May import rich, typer and console.output. Never: a decision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from console.output import show
from console.replay.plan import Decision, Plan
from console.replay.times import UsageError

Told = Callable[[int, int], None]


@contextmanager
def progress(words: str, quiet: bool) -> Iterator[Told]:
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
    if again:
        parts.append(f"{again} messages will be SENT AGAIN, as new messages")
    parts.append(f"{tried} will be tried")
    if sent:
        parts.append(f"{sent} were sent already, or may have been, and will not be sent again")
    typer.echo(f"{'; '.join(parts)}. {len(plan.items)} records to publish.")


def confirm(records: int, rate: float, yes: bool, as_json: bool) -> bool:
    """Whether the operator agrees. Raises UsageError where nobody can be asked."""
    if yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise UsageError("nothing was published: give --yes, or --dry-run to only look (nobody is here to be asked)")
    seconds = records / rate
    return typer.confirm(f"Publish {records} records at {rate:g} a second (about {seconds:.0f} s)?")
