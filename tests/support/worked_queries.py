"""The worked queries of docs/analytics.md: what is asked, what the page says is answered, and how an answer is printed there.

`HELIOGRAPH_WRITE_ANSWERS=1 pytest tests/integration/test_worked_queries.py` writes the answers into the page.
May import the standard library. Never: a store.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analytics.md"
_QUESTION = re.compile(
    r"\*\*(?P<number>\d+)\. (?P<title>[^\n]+)\*\*\n\n```sql\n(?P<sql>.*?);\n```\n\n```text\n(?P<answer>.*?)```\n",
    re.DOTALL,
)
_MAX_ROWS = 24


@dataclass(frozen=True, slots=True)
class Question:
    """One worked query."""

    number: int
    title: str
    sql: str
    answer: str


def questions() -> list[Question]:
    """All of the page, in order."""
    found = _QUESTION.finditer(PAGE.read_text("utf-8"))
    return [Question(int(m["number"]), m["title"], m["sql"], m["answer"]) for m in found]


def other_statements() -> list[str]:
    """The SQL of the page that is no worked query."""
    rest = _QUESTION.sub("", PAGE.read_text("utf-8"))
    blocks = re.findall(r"```sql\n(.*?)```", rest, re.DOTALL)
    return [part.strip() for block in blocks for part in block.split(";") if part.strip()]


def without_limit(sql: str) -> str:
    """The question with all its rows."""
    return re.sub(r" LIMIT \d+\Z", "", sql)


def printed(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An answer as the page has it: columns of text, numbers to the right."""
    cells = [[_shown(cell) for cell in row] for row in rows][:_MAX_ROWS]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(columns)]
    lines = [columns, *cells]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def _shown(cell: Any) -> str:
    if cell is None:
        return "NULL"
    if isinstance(cell, datetime):
        return cell.strftime("%Y-%m-%d %H:%M:%S")
    return str(cell)


def write(answers: Mapping[int, str]) -> None:
    """Put the answers into the page."""

    def put(match: re.Match[str]) -> str:
        start, end = match.start("answer") - match.start(), match.end("answer") - match.start()
        return match[0][:start] + answers[int(match["number"])] + match[0][end:]

    PAGE.write_text(_QUESTION.sub(put, PAGE.read_text("utf-8")), "utf-8")
