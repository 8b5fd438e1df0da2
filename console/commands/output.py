"""What commands print: a table for people, JSON for programs.

May import rich. Never: a query, a decision.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

_ID_WIDTH = 36
_LEAST_WIDTH = 8
"""Of a column without ids on a narrow terminal; its words break."""
_NO_EDGE = 10_000
"""Columns of what is no terminal."""
_IDS = re.compile(r"(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\n?)+")


def plain(text: str) -> str:
    """A stranger's text for a terminal: what would steer it (control characters, bidirectional marks) is escaped, line breaks stay."""
    return "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def show(rows: Sequence[Mapping[str, Any]], as_json: bool, *, empty: str = "nothing") -> None:
    """Print rows with the same keys."""
    if as_json:
        sys.stdout.write(json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n")
        return
    from rich.console import Console  # a role's start does not pay for it
    from rich.table import Table
    from rich.text import Text

    if not rows:
        sys.stdout.write(f"{empty}\n")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    needed = 0
    for column in rows[0]:
        numeric = all(isinstance(row[column], int | float) or row[column] is None for row in rows)
        # An id that breaks over two lines cannot be copied: it has its width, whatever the terminal's is.
        width = _ID_WIDTH if any(_has_ids(row[column]) for row in rows) else None
        table.add_column(
            column, justify="right" if numeric else "left", overflow="fold", min_width=width, no_wrap=width is not None
        )
        needed += (width or _LEAST_WIDTH) + 1
    for row in rows:
        # As text: in a string, rich would take `[/b]` of a stranger's template id for its own markup, and raise.
        table.add_row(*(Text("" if value is None else plain(str(value))) for value in row.values()))
    console = Console(highlight=False, soft_wrap=False)
    # A program or a file has no edge at which a word would have to break.
    console.width = max(console.width, needed) if sys.stdout.isatty() else _NO_EDGE
    console.print(table)


def show_one(value: Any, as_json: bool) -> None:
    """Print an object: a field a line, with its inner values as JSON."""
    if as_json or not isinstance(value, Mapping):
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        return
    width = max(map(len, value), default=0)
    for name, field in value.items():
        text = field if isinstance(field, str) else "" if field is None else json.dumps(field, ensure_ascii=False)
        sys.stdout.write(f"{name:<{width}}  {plain(text)}".rstrip() + "\n")


def _has_ids(value: Any) -> bool:
    return isinstance(value, str) and _IDS.fullmatch(value) is not None


def because(reason: str | None) -> str:
    """A reason behind a state, where there is one."""
    return f" ({reason})" if reason else ""
