"""What commands print: a table for people, JSON for programs.

May import rich. Never: a query, a decision.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def show(rows: Sequence[Mapping[str, Any]], as_json: bool, *, empty: str = "nothing") -> None:
    """Print rows with the same keys."""
    if as_json:
        sys.stdout.write(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n")
        return
    from rich.console import Console  # a role's start does not pay for it
    from rich.table import Table

    if not rows:
        sys.stdout.write(f"{empty}\n")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in rows[0]:
        numeric = all(isinstance(row[column], int | float) or row[column] is None for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    Console(highlight=False, soft_wrap=False).print(table)
