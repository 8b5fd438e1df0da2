"""What each column of a public view means: columns.yaml, and the comments for ClickHouse that are made of it; pure.

May import the standard library and PyYAML. Never: a connection to a store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

_STRING = re.compile(r"'(?:[^'\\]|\\.)*'")


@dataclass(frozen=True, slots=True)
class ViewTexts:
    """What a public view and its columns mean."""

    about: str
    columns: Mapping[str, str]


@cache
def texts() -> tuple[Mapping[str, str], Mapping[str, ViewTexts]]:
    """columns.yaml: the texts that hold everywhere, and those of each view."""
    read = yaml.safe_load(files("sinks").joinpath("columns.yaml").read_text("utf-8"))
    views = {name: ViewTexts(of["about"], of["columns"]) for name, of in read["views"].items()}
    return read["everywhere"], views


def comments_of(view: str, columns: Sequence[str]) -> dict[str, str]:
    """Column → text, in the order of the columns, without those that have none; {} for a view that is not public."""
    everywhere, views = texts()
    if view not in views:
        return {}
    known = {**everywhere, **views[view].columns}
    return {column: known[column] for column in columns if column in known}


def comments_on(view: str, statements: Mapping[str, str]) -> str:
    """The statement that comments on a view and its columns; '' for one that is not public."""
    if view not in texts()[1]:
        return ""
    comments = comments_of(view, columns_of(view, statements))
    each = [f"MODIFY COMMENT {quoted(texts()[1][view].about)}"]
    each += [f"COMMENT COLUMN `{column}` {quoted(text)}" for column, text in comments.items()]
    return f"ALTER TABLE {view} {', '.join(each)}"


def quoted(text: str) -> str:
    """A literal of SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def columns_of(view: str, statements: Mapping[str, str]) -> list[str]:
    """Names of a view's columns, read from its statement; `SELECT *` has those of the view it is of."""
    selected, rest = _selected(statements[view].split(" AS\n", 1)[1])
    if selected == ["*"]:
        found = re.match(r"\s*(\w+)", rest)
        assert found is not None, view
        return columns_of(found[1], statements)
    return [re.split(r"\bAS\s+|\.", item.strip())[-1].strip() for item in selected]


def _selected(query: str) -> tuple[list[str], str]:
    """What stands between the first SELECT and its FROM, cut at its commas; and what follows."""
    text = _STRING.sub(lambda match: "_" * len(match[0]), query)
    start = text.index("SELECT") + 6
    depth, items = 0, [""]
    for place in range(start, len(text)):
        sign = text[place]
        depth += (sign in "([") - (sign in ")]")
        if depth == 0 and re.match(r"\bFROM\s", text[place:]) and not text[place - 1].isalnum():
            return [item.strip() for item in items], query[place + 4 :]
        if depth == 0 and sign == ",":
            items.append("")
        else:
            items[-1] += sign
    raise ValueError("a view reads from nothing")
