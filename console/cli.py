"""The command `heliograph`: every command is a few lines over a module that does the work.

May import every layer, lazily: a role loads only what it runs. Never: work.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from console.commands.output import show
from runtime.errors import HeliographError
from runtime.proxies import spare_loopback
from runtime.settings import load_settings
from schemas.channels import ChannelName

app = typer.Typer(
    name="heliograph",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Notifications as an event-streaming pipeline: nothing lost, nothing doubled without a record.",
)
run_app = typer.Typer(no_args_is_help=True, help="Run one role of the pipeline in this process.")
topics_app = typer.Typer(no_args_is_help=True, help="Kafka topics as schemas/topics.yaml wants them.")
app.add_typer(run_app, name="run")
app.add_typer(topics_app, name="topics")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heliograph {version('heliograph')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


class Lane(StrEnum):
    critical = "critical"
    normal = "normal"
    bulk = "bulk"


_AnyLane = Annotated[Lane | None, typer.Option(help="One lane. [default: all three]")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_StateDir = Annotated[Path, typer.Option(help="A local stack's directory; what runs there is used.")]
_STATE_DIR = Path(".heliograph")
_Channel = Annotated[ChannelName, typer.Option(help="The channel to send.")]


def _lanes(lane: Lane | None) -> list[str]:
    return [lane.value] if lane else [each.value for each in Lane]


@run_app.command("api")
def run_api() -> None:
    """HTTP: ingest, reference data, status."""
    from api.role import new_event_loop, run
    from runtime.process import run_role

    raise SystemExit(run_role("api", load_settings(), run, serve_health=False, loop_factory=new_event_loop))


@run_app.command("relay")
def run_relay() -> None:
    """Publish PostgreSQL's outbox to the compacted topics; remove invalid devices and suppress bounced addresses."""
    from producers.reference.relay import run_relay as body
    from runtime.process import run_role

    raise SystemExit(run_role("relay", load_settings(), body))


@run_app.command("router")
def run_router(lane: _AnyLane = None) -> None:
    """Requests to rendered messages, by preferences and templates; best one process per lane."""
    from processors.router.role import run_router as body
    from runtime.process import run_role

    role = f"router-{lane}" if lane else "router"
    raise SystemExit(run_role(role, load_settings(), lambda context: body(context, _lanes(lane))))


@run_app.command("timers")
def run_timers() -> None:
    """Every wait: retries and schedules."""
    from processors.timers.role import run_timers as body
    from runtime.process import run_role

    raise SystemExit(run_role("timers", load_settings(), body))


@run_app.command("sender")
def run_sender(channel: _Channel, lane: _AnyLane = None) -> None:
    """Messages of a channel to its providers."""
    from runtime.process import run_role
    from senders.role import new_event_loop
    from senders.role import run_sender as body

    run = partial(body, channel=channel, lanes=_lanes(lane))
    raise SystemExit(run_role(f"sender-{channel}", load_settings(), run, loop_factory=new_event_loop))


@run_app.command("sink")
def run_sink() -> None:
    """Events to ClickHouse."""
    from runtime.process import run_role
    from sinks.role import run_sink as body

    raise SystemExit(run_role("sink", load_settings(), body))


@run_app.command("callbacks")
def run_callbacks() -> None:
    """What providers report after they accepted: receipts, and the status events made of them."""
    from producers.callbacks.role import new_event_loop
    from producers.callbacks.role import run_callbacks as body
    from runtime.process import run_role

    raise SystemExit(run_role("callbacks", load_settings(), body, loop_factory=new_event_loop))


@run_app.command("hooks")
def run_hooks() -> None:
    """Tell customers' endpoints of facts, signed."""
    from runtime.process import run_role
    from senders.hooks.role import new_event_loop
    from senders.hooks.role import run_hooks as body

    raise SystemExit(run_role("hooks", load_settings(), body, loop_factory=new_event_loop))


@run_app.command("bounces")
def run_bounces() -> None:
    """Mails that came back, from the mailboxes of accounts with `bounces`."""
    from producers.bounces.role import run_bounces as body
    from runtime.process import run_role

    raise SystemExit(run_role("bounces", load_settings(), body))


class Profile(StrEnum):
    local = "local"
    default = "default"


@topics_app.command("list")
def topics_list(as_json: _Json = False) -> None:
    """Every topic with its record, key, policy and partitions."""
    from schemas.topics import catalogue

    rows = [
        {
            "topic": t.name,
            "record": t.record,
            "key": t.key,
            "policy": t.policy,
            "retention_days": t.retention_days,
            "partitions": t.partitions["default"],
            "partitions_local": t.partitions["local"],
        }
        for t in catalogue().values()
    ]
    show(rows, as_json)


@topics_app.command("diff")
def topics_diff(as_json: _Json = False, state_dir: _StateDir = _STATE_DIR) -> None:
    """How the cluster differs from the catalogue; exit status 1 when it does."""
    from dataclasses import asdict

    from console.commands.stack import settings_for
    from runtime.kafka.admin import Admin
    from runtime.topics import diff

    settings = settings_for(state_dir)
    differences = diff(Admin(settings.kafka), settings.partitions)
    show([asdict(difference) for difference in differences], as_json, empty="the topics are as they should be")
    raise typer.Exit(1 if differences else 0)


@topics_app.command("apply")
def topics_apply(
    replication: Annotated[int, typer.Option(min=1, help="Replicas of new topics.")] = 1,
    as_json: _Json = False,
    state_dir: _StateDir = _STATE_DIR,
) -> None:
    """Create what is missing and configure what differs; never changes a partition count."""
    from dataclasses import asdict

    from console.commands.stack import settings_for
    from runtime.kafka.admin import Admin
    from runtime.topics import apply

    settings = settings_for(state_dir)
    done = apply(Admin(settings.kafka), settings.partitions, replication)
    show([asdict(difference) for difference in done], as_json, empty="nothing to do")


def _add_commands() -> None:
    """Everything but `run`: a role loads nothing it does not run."""
    from console.commands.audit import audit
    from console.commands.dead_letters import dlq_app
    from console.commands.doctor import doctor
    from console.commands.explain import explain
    from console.commands.keys import keys_app
    from console.commands.notifications import cancel, list_notifications, resend
    from console.commands.reconcile import reconcile_command
    from console.commands.replay import replay_app
    from console.commands.schemas import schemas_app
    from console.commands.send import send
    from console.commands.sink import sink_app
    from console.commands.sql import sql
    from console.commands.stack import has_local
    from console.commands.status import status
    from console.commands.suppressions import suppressions_app
    from console.commands.templates import templates_app
    from console.commands.users import users_app
    from console.commands.watch import watch
    from console.commands.webhooks import webhooks_app

    if has_local():
        from local.cli import down, up
        from local.demo import demo

        app.command()(up)
        app.command()(down)
        app.command()(demo)
    app.command("list")(list_notifications)
    app.command("reconcile")(reconcile_command)
    for command in (send, status, watch, explain, cancel, resend, audit, doctor, sql, migrate):
        app.command()(command)
    app.add_typer(users_app, name="users")
    app.add_typer(templates_app, name="templates")
    app.add_typer(suppressions_app, name="suppressions")
    app.add_typer(webhooks_app, name="webhooks")
    app.add_typer(keys_app, name="keys")
    app.add_typer(schemas_app, name="schemas")
    app.add_typer(replay_app, name="replay")
    app.add_typer(dlq_app, name="dlq")
    app.add_typer(sink_app, name="sink")


def migrate(state_dir: _StateDir = _STATE_DIR) -> None:
    """Bring the tables of PostgreSQL and ClickHouse, ClickHouse's views and its analyst up to date."""
    from console.commands.stack import settings_for
    from producers.reference.schema import migrate as migrate_postgres
    from sinks.access import make_analyst
    from sinks.schema import migrate as migrate_clickhouse

    settings = settings_for(state_dir)
    _say_applied("PostgreSQL", migrate_postgres(settings.postgres.dsn.get_secret_value()))
    _say_applied("ClickHouse", migrate_clickhouse(settings.clickhouse, replace_newer=True))
    if views := make_analyst(settings.clickhouse):
        typer.echo(f"ClickHouse's user {settings.clickhouse.analyst.username} reads {len(views)} views")


def _say_applied(store: str, names: Sequence[str]) -> None:
    for name in names:
        typer.echo(f"applied {name}")
    if not names:
        typer.echo(f"{store} is up to date")


def main() -> None:
    """Run a command; an error meant for people is one line and exit status 1."""
    spare_loopback(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no arrow gets a question mark, not a traceback
    if sys.argv[1:2] != ["run"]:
        _add_commands()
    try:
        app()
    except HeliographError as exc:
        sys.stderr.write(f"heliograph: {exc}\n")
        raise SystemExit(1) from exc


if __name__ == "__main__":
    main()
