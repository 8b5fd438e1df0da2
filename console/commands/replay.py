"""`heliograph replay` and `heliograph replay list`.

May import typer and replay. Never: how something is chosen, published or stored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from typing import Annotated, Any

import typer

from console.commands import replay_screen, replay_targets
from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from replay.choose import Selection, build_plan, check_range, check_topic
from replay.execute import execute
from replay.generations import Generations
from replay.plan import Item, Plan
from replay.store import Replay, ReplayStore
from replay.template import TemplateVersion, check_templates
from replay.times import UsageError, parse_time
from replay.where import MESSAGE_COLUMNS, compile_where
from runtime import ids
from runtime.clock import system_clock
from runtime.settings import Settings

DEFAULT_RATE = 200.0

replay_app = typer.Typer(
    invoke_without_command=True, help="Publish requests or messages of a stretch of time again; sends nothing twice."
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
From = Annotated[str | None, typer.Option("--from", metavar="TIME", help="RFC 3339, or how long ago: -2h, -30m.")]
To = Annotated[str, typer.Option("--to", metavar="TIME", help="As --from; now unless given.")]
Where = Annotated[str | None, typer.Option(metavar="CONDITION", help="For example: \"reason = 'provider_rejected'\".")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
Rate = Annotated[float, typer.Option(min=0.1, max=100_000, help="Records a second at most.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Resume = Annotated[str | None, typer.Option(metavar="ID", help="Go on with a replay that was stopped.")]


@replay_app.callback()
def replay(
    context: typer.Context,
    topic: Annotated[str | None, typer.Option(help="A requests or dispatch topic.")] = None,
    since: From = None,
    until: To = "now",
    where: Where = None,
    tenant: Tenant = None,
    dry_run: DryRun = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send again what was sent already, as the next generation.")
    ] = False,
    rate: Rate = DEFAULT_RATE,
    yes: Yes = False,
    resume: Resume = None,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="Send nothing: show what --template or --provider would change.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(metavar="ID:VERSION", help="Only requests of this template, rendered with this version."),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of --what-if: an account; what it could take, at what price.")
    ] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Publish a stretch of a topic again: shows what it will do, asks, and can be resumed."""
    if context.invoked_subcommand is not None:
        return
    if resume is not None:
        settings = replay_targets.settings_for(state_dir)
        with replay_targets.writing_store(settings) as store:
            report(publish_remaining(settings, store, store.find(resume), rate, as_json), None, as_json)
        return
    if topic is None or since is None:
        raise UsageError("give --topic and --from (and --to), or --resume ID")
    if what_if and template is None and provider is None:
        raise UsageError("--what-if belongs with --template ID:VERSION, --provider NAME, or both")
    if provider is not None and not what_if:
        raise UsageError("--provider belongs with --what-if")
    now = system_clock()
    check_topic(topic)
    start, end = parse_time(since, now), min(parse_time(until, now), now)
    check_range(start, end, now, resend or what_if)
    condition = compile_where(where, MESSAGE_COLUMNS, now)
    version = TemplateVersion.parse(template) if template is not None else None
    selection = Selection(topic, start, end, condition, where, tenant, resend, version)
    settings = replay_targets.settings_for(state_dir)
    with replay_targets.writing_store(settings) as store:
        if what_if:
            from replay.whatif import what_if as compare  # loads the router's code

            with replay_screen.progress("rendering", as_json) as on_progress:
                found = compare(settings, store, selection, now, on_progress, provider=provider)
            replay_screen.show_what_if(found, as_json)
            return
        with replay_screen.progress("reading", as_json) as on_progress:
            plan = build_plan(settings.kafka, store, selection, now, on_progress)
        if version is not None:
            check_templates(settings.kafka, {item.tenant for item in plan.items}, version)
        replay_record = Replay(
            ids.notification_id(now, "replay"),
            "resend" if resend else "replay",
            topic,
            where or "",
            tenant or "",
            replay_targets.who(),
            len(plan.items),
            now,
            start,
            end,
            template=str(version or ""),
            counts=json.dumps(plan.summary()),
        )
        confirm_and_publish(
            settings, store, plan, replay_record, rate, dry_run=dry_run, yes=yes, as_json=as_json, kind="records"
        )


@replay_app.command("list")
def list_replays(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 20,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """The latest replays and redrives: who, what, how far."""
    with closing(ReplayStore(replay_targets.settings_for(state_dir).clickhouse)) as store:
        rows = store.replays(limit)
    if not as_json:
        shown = (
            "replay_id",
            "command",
            "state",
            "topic",
            "filter",
            "requested_by",
            "planned",
            "published",
            "started_at",
            "finished_at",
        )
        rows = [{name: row[name] for name in shown} for row in rows]
    show(rows, as_json, empty="nothing was replayed yet")


# -- shared with `dlq redrive` ----------------------------------------------------------------------------------------


def confirm_and_publish(
    settings: Settings,
    store: ReplayStore,
    plan: Plan,
    replay_record: Replay,
    rate: float,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    kind: str,
) -> None:
    """Show the plan; publish it when that is wanted."""
    if not as_json:
        replay_screen.show_plan(plan, kind)
    if dry_run or not plan.items:
        if as_json:
            report(None, plan, True)
        elif dry_run:
            typer.echo("A dry run: nothing was published.")
        return
    if not replay_screen.confirm(len(plan.items), rate, yes, as_json):
        typer.echo("Nothing was published.")
        raise typer.Exit(1)
    if replay_record.command == "resend":
        with Generations(settings.postgres) as generations:
            plan.items = generations.reserve(plan.items)
    now = system_clock()
    store.write_items(replay_record.replay_id, plan.items, now)
    replay_record = replay_record.moved(now)
    store.write(replay_record)
    if not as_json:
        typer.echo(
            f"Replay {replay_record.replay_id}: `heliograph replay --resume {replay_record.replay_id}` goes on where it stops."
        )
    report(publish_remaining(settings, store, replay_record, rate, as_json), plan, as_json)


def publish_remaining(
    settings: Settings, store: ReplayStore, replay_record: Replay, rate: float, as_json: bool
) -> Replay:
    """Publish what is left of a replay."""
    if replay_record.state == "finished":
        return replay_record
    sys.stdout.flush()
    with (
        Generations(settings.postgres) if replay_record.command == "resend" else nullcontext() as generations,
        replay_screen.progress("publishing", as_json) as on_progress,
    ):
        return execute(
            settings.kafka,
            store,
            replay_record,
            rate,
            lambda done: on_progress(done, replay_record.planned),
            confirm=generations.confirm if isinstance(generations, Generations) else None,
            crash_at=settings.crash_at,
        )


def report(replay_record: Replay | None, plan: Plan | None, as_json: bool) -> None:
    """How it ended."""
    if as_json:
        typer.echo(json.dumps(as_object(replay_record, plan), ensure_ascii=False))
    elif replay_record is not None:
        gone = f", {replay_record.gone} of them are no longer kept" if replay_record.gone else ""
        typer.echo(f"{replay_record.state}: {replay_record.published} of {replay_record.planned} records{gone}.")


def as_object(replay_record: Replay | None, plan: Plan | None) -> dict[str, Any]:
    """For programs."""
    found: dict[str, Any] = {}
    if plan is not None:
        found = {
            "dry_run": replay_record is None,
            "looked_at": plan.looked_at,
            "unreadable": plan.unreadable,
            "other_templates": plan.other_templates,
            "pinned": plan.pinned,
            "counts": plan.summary(),
            "rows": plan.rows(),
            "items": _listed(plan.items),
        }
    if replay_record is not None:
        found |= {
            "replay_id": replay_record.replay_id,
            "command": replay_record.command,
            "state": replay_record.state,
            "planned": replay_record.planned,
            "published": replay_record.published,
            "gone": replay_record.gone,
        }
    return found


def _listed(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [
        {
            "notification_id": item.notification_id,
            "messages": list(item.messages),
            "channels": list(item.channels),
            "generation": item.generation,
            "dead_letter_id": item.dead_letter_id,
            "topic": item.position.topic,
            "partition": item.position.partition,
            "offset": item.position.offset,
        }
        for item in items
    ]
