"""`heliograph audit`: does everything add up? Exit status 1 when a residual is not 0.

May import tracking.audit, sinks.completeness. Never: a number of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, settings_for
from replay.times import parse_time
from runtime.clock import system_clock
from runtime.errors import SettingsError, UnavailableError
from schemas.identity import HOUR_S, LAST_HOUR_S
from sinks.completeness import compare
from tracking.audit import MAX_FINDINGS, Audit, Row, audit_hours, columns

DEFAULT_HOURS = 24


def moment(text: str) -> int:
    """Seconds of a time ago (`-2h`), or of an RFC 3339 time or date, UTC unless it says otherwise. Raises HeliographError."""
    if text == "now" or text.startswith("-"):
        return parse_time(text, system_clock()) // 1_000
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as exc:
        raise SettingsError(f"{text} is not a time: write 2026-03-01T12:00Z, 2026-03-01, -2h, -7d or now") from exc
    seconds = int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
    return min(max(seconds, 0), LAST_HOUR_S)


def _plain(row: Row) -> dict[str, Any]:
    return {
        name: f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else value for name, value in row.items()
    }


def audit(
    tenant: Annotated[str, typer.Option(help="One tenant. All unless given.")] = "",
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="First hour of acceptance, such as 2026-03-01 or -2h. A day ago unless given.",
        ),
    ] = "",
    to: Annotated[str, typer.Option("--to", metavar="TIME", help="Last hour of acceptance. Now unless given.")] = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare accepted notifications with their outcomes, by hour; exit status 1 when some are not accounted for."""
    since = moment(from_) if from_ else system_clock() // 1_000 - DEFAULT_HOURS * HOUR_S
    settings = settings_for(state_dir)
    found = audit_hours(settings.clickhouse, tenant, since, moment(to) if to else LAST_HOUR_S)
    try:
        found = replace(found, missing=compare(settings).missing)
    except UnavailableError as exc:
        typer.echo(f"not compared with Kafka: {exc}", err=True)
    if as_json:
        answer = {
            "hours": [_plain(row) for row in found.hours],
            "totals": found.totals,
            "findings": [_plain(row) for row in found.findings],
            "missing": found.missing,
        }
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(found)
    raise typer.Exit(0 if found.adds_up else 1)


def _print(found: Audit) -> None:
    totals = found.totals
    # A column of nothing but zeros says nothing; these four always say something.
    shown = [name for name in columns() if totals[name] or name in ("accepted", "in_flight", "residual")]
    rows = [
        {"hour": f"{row['hour']:%Y-%m-%d %H:00}", "tenant": row["tenant"], **_only(row, shown)} for row in found.hours
    ]
    show(
        [*rows, {"hour": "total", "tenant": "", **_only(totals, shown)}] if rows else [],
        False,
        empty="nothing was accepted",
    )
    settled = totals["accepted"] - totals["in_flight"]
    typer.echo(
        f"accepted {totals['accepted']} = settled {settled} + in flight {totals['in_flight']}, residual {totals['residual']}"
    )
    if found.missing:
        typer.echo(
            f"ClickHouse lacks at least {found.missing} requests that the sink has stored: run `heliograph sink rebuild`"
        )
    if found.findings:
        show(
            [
                {
                    "notification": r["notification_id"],
                    "tenant": r["tenant"],
                    "finding": r["finding"],
                    "state": r["state"],
                }
                for r in found.findings
            ],
            False,
        )
        if len(found.findings) == MAX_FINDINGS:
            typer.echo(f"only the first {MAX_FINDINGS} are shown: narrow it with --tenant, --from and --to")


def _only(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: row[name] for name in names}
