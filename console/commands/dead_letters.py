"""`heliograph dlq list|show|redrive|dismiss`: what was given up and why, again from where it was given up, or set aside.

May import typer and replay. Never: how a letter is stored or published.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated
from uuid import UUID

import typer

from console.commands import replay_screen, replay_targets
from console.commands.output import plain, show
from console.commands.replay import (
    DEFAULT_RATE,
    AsJson,
    DryRun,
    Rate,
    Resume,
    Tenant,
    To,
    Where,
    Yes,
    confirm_and_publish,
    ended,
    publish_remaining,
)
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from replay.dead_letters import counted, described, filter_words, listed, selected
from replay.dismiss import dismiss
from replay.progress import Replay
from replay.redrive import build_redrive_plan
from replay.store import ReplayStore
from replay.times import UsageError, parse_time
from runtime import ids
from runtime.clock import system_clock

dlq_app = typer.Typer(no_args_is_help=True, help="Dead letters: records that were given up, with the reason.")

KEPT = "-30d"
Stage = Annotated[str | None, typer.Option(help="router, sender, sink, timers, view or ledger.")]
Reason = Annotated[str | None, typer.Option(help="For example retries_exhausted.")]
All = Annotated[
    bool,
    typer.Option("--all", help="Also those that were re-driven, sent since, or dismissed; without it what is open."),
]
Since = Annotated[str, typer.Option("--from", metavar="TIME", help="RFC 3339, or how long ago: -2h; all unless given.")]


@dlq_app.command("list")
def list_dead_letters(
    where: Where = None,
    stage: Stage = None,
    reason: Reason = None,
    tenant: Tenant = None,
    since: Since = KEPT,
    until: To = "now",
    everything: All = False,
    rows: Annotated[bool, typer.Option("--rows", help="Every letter, not counts.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Of --rows.")] = 1_000,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Count the dead letters that wait for somebody by stage, topic and reason, or list them."""
    with closing(ReplayStore(replay_targets.settings_for(state_dir).clickhouse)) as store:
        dead_letters = selected(store, where, stage, reason, tenant, since, until, closed=everything)
        found = listed(dead_letters, limit) if rows else counted(dead_letters)
    show(
        found,
        as_json,
        empty="there are no such dead letters" if everything else "no such dead letter is open; --all shows the others",
    )


@dlq_app.command("show")
def show_dead_letter(
    dead_letter_id: Annotated[
        str, typer.Argument(metavar="ID", help="Of a dead letter, as `dlq list --rows` shows it.")
    ],
    reveal: Annotated[bool, typer.Option("--reveal", help="Addresses and contents as well.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Everything about one dead letter: the record as it decodes, else its bytes as hex."""
    try:
        wanted = str(UUID(dead_letter_id))
    except ValueError as exc:
        raise UsageError(
            f"{dead_letter_id!r} is not the id of a dead letter; `heliograph dlq list --rows` shows them"
        ) from exc
    with closing(ReplayStore(replay_targets.settings_for(state_dir).clickhouse)) as store:
        dead_letter = store.dead_letters_by_id([wanted]).get(wanted)
    if dead_letter is None:
        raise UsageError(f"there is no dead letter {wanted}")
    found = described(dead_letter, reveal)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, value in found.items():
        text = json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict) else value
        typer.echo(f"{name + ':':<17} {'' if text is None else plain(str(text))}")


@dlq_app.command("redrive")
def redrive(
    where: Where = None,
    stage: Stage = None,
    reason: Reason = None,
    tenant: Tenant = None,
    since: Since = KEPT,
    until: To = "now",
    everything: All = False,
    dry_run: DryRun = False,
    rate: Rate = DEFAULT_RATE,
    yes: Yes = False,
    resume: Resume = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Publish dead letters again where they were given up: shows what it will do, asks, and can be resumed."""
    settings = replay_targets.settings_for(state_dir)
    with replay_targets.writing_store(settings) as store:
        if resume is not None:
            ended(publish_remaining(settings, store, store.find(resume), rate, as_json), None, as_json)
            return
        now = system_clock()
        dead_letters = selected(store, where, stage, reason, tenant, since, until, closed=everything)
        with replay_screen.progress("reading", as_json):
            plan = build_redrive_plan(store, dead_letters, now)
        replay_record = Replay(
            ids.notification_id(now, "replay"),
            "redrive",
            "notify.deadletters.v1",
            filter_words(where, stage, reason),
            tenant or "",
            replay_targets.who(),
            len(plan.items),
            now,
            parse_time(since, now),
            parse_time(until, now),
            counts=json.dumps(plan.summary()),
        )
        confirm_and_publish(
            settings, store, plan, replay_record, rate, dry_run=dry_run, yes=yes, as_json=as_json, kind="dead letters"
        )


@dlq_app.command("dismiss")
def dismiss_dead_letters(
    why: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why nobody needs them; kept with the dismissal.")
    ],
    where: Where = None,
    stage: Stage = None,
    tenant: Tenant = None,
    since: Since = KEPT,
    until: To = "now",
    dry_run: DryRun = False,
    yes: Yes = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Set open dead letters aside: recorded with who and why, kept for as long as any, listed by --all only."""
    if where is None and stage is None:
        raise UsageError("say which: --where CONDITION, --stage STAGE, or both")
    with replay_targets.writing_store(replay_targets.settings_for(state_dir)) as store:
        now = system_clock()
        chosen = list(selected(store, where, stage, None, tenant, since, until))
        if not as_json:
            show(counted(iter(chosen)), False, empty="no such dead letter is open")
        dismissal = None
        if chosen and not dry_run:
            if not replay_screen.agreed(f"Dismiss {len(chosen)} dead letters?", yes, as_json):
                typer.echo("Nothing was dismissed.")
                raise typer.Exit(1)
            dismissal = dismiss(store, chosen, filter_words(where, stage, None), tenant, replay_targets.who(), why, now)
    if as_json:
        dismissed = len(chosen) if dismissal else 0
        typer.echo(json.dumps({"replay_id": dismissal, "selected": len(chosen), "dismissed": dismissed}))
    elif dismissal:
        typer.echo(f"{len(chosen)} dead letters dismissed; `heliograph replay list` shows it as {dismissal}.")
    elif chosen:
        typer.echo("A dry run: nothing was dismissed.")
