"""`heliograph replay` and `heliograph replay list`.

May import typer and replay. Never: how something is chosen, published or stored.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from types import FrameType
from typing import Annotated, Any

import typer

from console.commands import replay_screen, replay_targets
from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from producers.reference.leases import LEASE_S, ReplayLeases
from replay.choose import Selection, build_plan, check_range, check_topic
from replay.execute import execute
from replay.generations import Generations
from replay.plan import Item, Plan
from replay.progress import Replay
from replay.running import Lease, Stop
from replay.store import ReplayStore
from replay.template import TemplateVersion, check_templates
from replay.times import UsageError, parse_time
from replay.where import MESSAGE_COLUMNS, compile_where
from runtime import ids
from runtime.clock import system_clock, system_monotonic
from runtime.errors import UnavailableError
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
            ended(publish_remaining(settings, store, store.find(resume), rate, as_json), None, as_json)
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
    """The latest replays, redrives and dismissals: who, what, how far; a dead runner's is `abandoned`."""
    settings = replay_targets.settings_for(state_dir)
    with closing(ReplayStore(settings.clickhouse)) as store:
        rows = store.replays(limit)
    mark_abandoned(settings, rows)
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


def mark_abandoned(settings: Settings, rows: Sequence[dict[str, Any]]) -> None:
    """What nobody runs any more is not running, whatever it wrote down last."""
    running = [row for row in rows if row["state"] == "running"]
    if not running:
        return
    with closing(ReplayLeases(settings.postgres)) as leases:
        try:
            holders = leases.holders(row["replay_id"] for row in running)
        except UnavailableError as exc:
            typer.echo(f"whether they still run is not known: {exc}", err=True)
            return
    for row in running:
        if row["replay_id"] not in holders:
            row["state"] = "abandoned"


@replay_app.command("show")
def show_replay(
    replay_id: Annotated[str, typer.Argument(metavar="ID", help="As `replay list` shows it.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """What a replay did, and what became of it since: sent, failed again, on its way, and who got a second message."""
    settings = replay_targets.settings_for(state_dir)
    with closing(ReplayStore(settings.clickhouse)) as store:
        found = store.find(replay_id)
        outcomes = store.outcomes(found)
    row: dict[str, Any] = {**as_object(found, None), "requested_by": found.requested_by, "error": found.error or None}
    mark_abandoned(settings, [row])
    row["outcomes"] = {name: count for name, count in outcomes.items() if name != "twice"}
    row["people_with_a_second_message"] = outcomes["twice"]
    if as_json:
        typer.echo(json.dumps(row, ensure_ascii=False))
        return
    typer.echo(f"{row['command']} {row['replay_id']} by {row['requested_by']}: {_how_far(found, row['state'])}")
    for name, count in row["outcomes"].items():
        typer.echo(f"{count:>9} {_OUTCOMES[name]}")
    typer.echo(f"people who got a second message: {row['people_with_a_second_message']}")


_OUTCOMES = {
    "sent": "sent since",
    "unknown": "may have been sent since: in doubt",
    "sent_before": "had been sent before: dropped by the senders' ledger",
    "failed_again": "ended unsent again",
    "on_its_way": "on their way",
}


@replay_app.command("stop")
def stop_replay(
    replay_id: Annotated[str, typer.Argument(metavar="ID", help="As `replay list` shows it.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: AsJson = False,
) -> None:
    """Stop a replay or redrive that runs, on whatever machine; it can be resumed."""
    settings = replay_targets.settings_for(state_dir)
    with closing(ReplayStore(settings.clickhouse)) as store, closing(ReplayLeases(settings.postgres)) as leases:
        found = store.find(replay_id)
        if found.state == "finished" or not leases.request_stop(found.replay_id, replay_targets.who()):
            words = "it is finished" if found.state == "finished" else "nobody runs it"
            raise UsageError(f"replay {found.replay_id} cannot be stopped: {words}")
        deadline = system_monotonic() + LEASE_S
        while found.replay_id in leases.holders([found.replay_id]):
            if system_monotonic() > deadline:
                raise UnavailableError(f"replay {found.replay_id} was asked to stop and has not answered; try again")
            time.sleep(0.1)
        found = store.find(replay_id)
    report(found, None, as_json)


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
    ended(publish_remaining(settings, store, replay_record, rate, as_json), plan, as_json)


def publish_remaining(
    settings: Settings, store: ReplayStore, replay_record: Replay, rate: float, as_json: bool
) -> Replay:
    """Publish what is left of a replay, as its only runner; SIGTERM and Ctrl-C stop it between two batches.

    Raises RefusedError while another one runs it.
    """
    if replay_record.state == "finished":
        return replay_record
    sys.stdout.flush()
    stop = Stop()
    with (
        Lease(settings.postgres, replay_record.replay_id, replay_targets.who(), stop),
        _stopped_by_signals(stop),
        Generations(settings.postgres) if replay_record.command == "resend" else nullcontext() as generations,
        replay_screen.progress("publishing", as_json) as on_progress,
    ):
        # Only now: another runner may have gone on with it meanwhile.
        replay_record = store.find(replay_record.replay_id)
        return execute(
            settings.kafka,
            store,
            replay_record,
            rate,
            lambda done: on_progress(done, replay_record.planned),
            stop,
            confirm=generations.confirm if isinstance(generations, Generations) else None,
            crash_at=settings.crash_at,
        )


@contextmanager
def _stopped_by_signals(stop: Stop) -> Iterator[None]:
    """SIGTERM and SIGINT ask it to stop, and do nothing else."""

    def ask(number: int, _: FrameType | None) -> None:
        stop.ask(signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(replay_record: Replay, plan: Plan | None, as_json: bool) -> None:
    """Say how a run ended; exit status 1 for one that was stopped."""
    report(replay_record, plan, as_json)
    if replay_record.state == "stopped":
        raise typer.Exit(1)


def _how_far(replay_record: Replay, state: str) -> str:
    gone = f", {replay_record.gone} of them are no longer kept" if replay_record.gone else ""
    why = f"; {replay_record.error}" if replay_record.error and state == "stopped" else ""
    return f"{state}: {replay_record.published} of {replay_record.planned} records{gone}{why}"


def report(replay_record: Replay | None, plan: Plan | None, as_json: bool) -> None:
    """How it ended."""
    if as_json:
        typer.echo(json.dumps(as_object(replay_record, plan), ensure_ascii=False))
    elif replay_record is not None:
        typer.echo(f"{_how_far(replay_record, replay_record.state)}.")


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
