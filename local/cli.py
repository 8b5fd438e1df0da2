"""`heliograph up` and `heliograph down`: plain functions for console/cli.py to mount.

May import typer, rich, local.stack. Never: anything but options and words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from local import stack
from local.supervisor.layout import COUNTED, SHARED

_Port = Annotated[int | None, typer.Option(help="A fixed port below 32768. [default: a free one]")]
MAX_PROCESSES = 4
"""Partitions of a local topic: one more process would have none."""
_StateDir = Annotated[Path, typer.Option(help="Where the stack keeps its data, logs and endpoints.json.")]


def up(
    state_dir: _StateDir = stack.DEFAULT_STATE_DIR,
    detach: Annotated[bool, typer.Option("--detach", help="Return once all is ready; `down` stops it.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="Settings of your own; their providers replace simulated ones.")
    ] = None,
    processes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ROLE=]N",
            help=f"Processes of a role, or of each of {', '.join(SHARED)}; `sender-email-critical=1` sends that lane apart.",
        ),
    ] = None,
    failover: Annotated[
        bool,
        typer.Option("--failover", help="Three simulated accounts of e-mail and of SMS; the first of SMS is refused."),
    ] = False,
    api_port: _Port = None,
    kafka_port: _Port = None,
    postgres_port: _Port = None,
    clickhouse_port: _Port = None,
    smtp_port: _Port = None,
    mailbox_port: _Port = None,
    simulator_port: _Port = None,
) -> None:
    """Start Kafka, PostgreSQL, ClickHouse, the vendor simulator and every role on this machine."""
    wanted = {
        "api": api_port,
        "kafka": kafka_port,
        "postgres": postgres_port,
        "clickhouse": clickhouse_port,
        "smtp": smtp_port,
        "mailbox": mailbox_port,
        "simulator": simulator_port,
    }
    running = stack.up(
        state_dir,
        detach=detach,
        config=config,
        ports={name: port for name, port in wanted.items() if port is not None},
        processes=process_counts(processes or ()),
        failover=failover,
        progress=lambda name: typer.echo(f"started {name}", err=True),
    )
    if not running.started_here:
        typer.echo(f"already running in {state_dir}")
    endpoints = running.endpoints
    shown = {**endpoints, "postgres": hide_password(endpoints["postgres"])}
    for name in ("api", "mailbox", "simulator", "kafka", "postgres", "clickhouse", "smtp"):
        typer.echo(f"{name:<12} {shown[name]}")
    typer.echo(f"{'secrets':<12} the API key and PostgreSQL's password are in {state_dir / 'endpoints.json'}")
    if not detach:
        typer.echo(
            "Ctrl-C stops everything"
            if running.started_here
            else "Ctrl-C leaves it running; `heliograph down` stops it",
            err=True,
        )
        stack.hold(running)


def process_counts(texts: Sequence[str]) -> dict[str, int]:
    """How many processes of each role: `2` is of every role that can share its work, `sender-email=2` of one. Raises BadParameter."""
    counts: dict[str, int] = {}
    for text in texts:
        role, separator, number = text.rpartition("=")
        if separator and role not in COUNTED:
            raise typer.BadParameter(f"--processes {text}: give one of {', '.join(COUNTED)}")
        if number not in map(str, range(1, MAX_PROCESSES + 1)):
            raise typer.BadParameter(f"--processes {text}: give 1 to {MAX_PROCESSES}")
        counts |= dict.fromkeys((role,) if separator else SHARED, int(number))
    return counts


def hide_password(dsn: str) -> str:
    """A database URL without its password."""
    parts = urlsplit(dsn)
    user, at, place = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}{at}{place}").geturl()


def down(state_dir: _StateDir = stack.DEFAULT_STATE_DIR) -> None:
    """Stop the stack of a state directory; succeeds when none runs."""
    typer.echo("stopped" if stack.down(state_dir) else "nothing was running")
