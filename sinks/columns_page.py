"""docs/columns.md, and whether each column of a public view has a text (`make check`).

`python -m sinks.columns_page` checks both; `--write` writes the page.
May import columns and schema_files. Never: a store.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sinks.columns import columns_of, comments_of, texts
from sinks.schema_files import sql_views

PAGE = Path("docs/columns.md")
_HEAD = """# Columns of the public views

Made from `sinks/columns.yaml` by `python -m sinks.columns_page --write`: edit that. ClickHouse has the same texts as comments
(`SELECT name, comment FROM system.columns WHERE table = 'v_messages'`). Times are UTC. How to ask: [analytics.md](analytics.md).
"""


def problems(statements: Mapping[str, str]) -> list[str]:
    """What does not fit between the views and their texts, a line each."""
    everywhere, views = texts()
    found = [f"{view} of columns.yaml is no view" for view in views if view not in statements]
    used: set[str] = set()
    for view in views.keys() & statements.keys():
        columns = columns_of(view, statements)
        there = comments_of(view, columns)
        used |= set(columns)
        found += [f"{view}.{column} has no text in sinks/columns.yaml" for column in columns if column not in there]
        found += [
            f"{view}.{column} of columns.yaml is no column" for column in views[view].columns if column not in columns
        ]
    return sorted(found + [f"no view has the column {column} of everywhere" for column in everywhere.keys() - used])


def page(statements: Mapping[str, str]) -> str:
    """docs/columns.md."""
    parts = [_HEAD]
    for view, of in texts()[1].items():
        comments = comments_of(view, columns_of(view, statements))
        rows = "".join(f"| `{column}` | {text} |\n" for column, text in comments.items())
        parts.append(f"\n## {view}\n\n{of.about}\n\n| column | meaning |\n|---|---|\n{rows}")
    return "".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Check, or write the page."""

    statements = {view.name: view.statement for view in sql_views()}
    found = problems(statements)
    if "--write" in arguments and not found:
        PAGE.write_text(page(statements), "utf-8")
    if not found and PAGE.read_text("utf-8") != page(statements):
        found = [f"{PAGE} is not what sinks/columns.yaml says: run `python -m sinks.columns_page --write`"]
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
