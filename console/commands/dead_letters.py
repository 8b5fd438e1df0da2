"""`heliograph dlq list|show|redrive`: what was given up, why, and again from where it was given up.

May import typer and replay. Never: how a letter is stored or published.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated
from uuid import UUID

import typer

from console.commands import replay_screen, replay_targets
from console.commands.output import show
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
    publish_remaining,
    report,
)
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from replay.choose import build_redrive_plan
from replay.dead_letters import counted, described, filter_words, listed, selected
from replay.store import Replay, ReplayStore
from replay.times import UsageError, parse_time
from runtime import ids
from runtime.clock import system_clock

dlq_app = typer.Typer(no_args_is_help=True, help="Dead letters: records that were given up, with the reason.")

KEPT = "-30d"
Stage = Annotated[str | None, typer.Option(help="router, sender, sink, timers, view or ledger.")]
Reason = Annotated[str | None, typer.Option(help="For example retries_exhausted.")]
Since = Annotated[str, typer.Option("--from", metavar="TIME", help="RFC 3339, or how long ago: -2h; all unless given.")]


@dlq_app.command("list")
def list_dead_letters(
    where: Where = None,
    stage: Stage = None,
    reason: Reason = None,
    tenant: Tenant = None,
    since: Since = KEPT,
    until: To = "now",
    rows: Annotated[bool, typer.Option("--rows", help="Every letter, not counts.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Of --rows.")] = 1_000,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Count the dead letters by stage, topic and reason, or list them."""
    with closing(ReplayStore(replay_targets.settings_for(state_dir).clickhouse)) as store:
        dead_letters = selected(store, where, stage, reason, tenant, since, until)
        found = listed(dead_letters, limit) if rows else counted(dead_letters)
    show(found, as_json, empty="there are no such dead letters")


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
        typer.echo(f"{name + ':':<17} {'' if text is None else text}")


@dlq_app.command("redrive")
def redrive(
    where: Where = None,
    stage: Stage = None,
    reason: Reason = None,
    tenant: Tenant = None,
    since: Since = KEPT,
    until: To = "now",
    dry_run: DryRun = False,
    rate: Rate = DEFAULT_RATE,
    yes: Yes = False,
    resume: Resume = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Publish dead letters again where they were given up: shows what it will do, asks, and can be resumed."""
    settings = replay_targets.settings_for(state_dir)
    with closing(ReplayStore(settings.clickhouse)) as store:
        if resume is not None:
            report(publish_remaining(settings, store, store.find(resume), rate, as_json), None, as_json)
            return
        now = system_clock()
        dead_letters = selected(store, where, stage, reason, tenant, since, until)
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
