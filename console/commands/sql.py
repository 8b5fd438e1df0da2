"""`heliograph sql`: a question to the analytics, which changes nothing.

May import sinks.clickhouse. Never: a query of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from console.commands.client import Json
from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, settings_for

MOST_ROWS = 100_000
READ_ONLY = {"readonly": 1, "limit": MOST_ROWS + 1}
"""Only reads, and no setting of the query's own; one row more than is shown tells that there are more."""


def sql(
    query: Annotated[str, typer.Argument(metavar="SQL|-", help="One query; - reads stdin.")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
    as_json: Json = False,
) -> None:
    """Ask ClickHouse, reading only: docs/analytics.md says what there is. At most 100,000 rows are shown."""
    from sinks import clickhouse

    settings = settings_for(state_dir).clickhouse
    text = sys.stdin.read() if query == "-" else query
    client = clickhouse.connect(settings, timeout_s=300)
    try:
        with clickhouse.store_errors(settings):
            result = client.query(text, settings=READ_ONLY)
    finally:
        client.close()
    rows = list(_rows(result.column_names, result.result_rows[:MOST_ROWS]))
    show(rows, as_json, empty="no rows")
    if len(result.result_rows) > MOST_ROWS:
        typer.echo(f"only the first {MOST_ROWS} rows are shown: narrow the query", err=True)


def _rows(names: tuple[str, ...], rows: Any) -> Iterator[dict[str, Any]]:
    """As JSON has them: what it has no form for is text."""
    for row in rows:
        yield json.loads(json.dumps(dict(zip(names, row, strict=True)), default=str, ensure_ascii=False))
