"""What ClickHouse is to hold, as files: numbered migrations (tables), and one repeatable file per SQL view; pure.

    migrations/NNNN_name.sql   tables, materialized views that feed them, projections; each runs once and never changes
    views/<name>.sql           `CREATE OR REPLACE VIEW <name>`; runs again whenever it differs from what the store has

The first migrations were released with views in them. Their files stay as they were, since stores keep their checksums; the
views in them are not made any more, views/ has them all.

A view that columns.yaml explains is public: it is made in the database of the settings. The others are helpers, in a database of
their own. The files name neither.

    | the view in the store                                                   | difference |
    |-------------------------------------------------------------------------|------------|
    | has a file and is not there                                             | missing    |
    | was not made of its file as it is, of the views it reads and the tables | outdated   |
    | was made so, and was changed in the store afterwards                    | edited     |
    | was made by us and has no file any more                                 | removed    |
    | was made as its file says; was never ours                               | none       |

May import columns. Never: a connection to a store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from typing import Literal

from sinks.columns import comments_on, texts

ViewDifference = Literal["missing", "outdated", "edited", "removed"]

_VIEW = re.compile(r"CREATE OR REPLACE VIEW (\w+) AS\b")
_READS = re.compile(r"\b(?:FROM|JOIN)\s+(\w+)")
_NAMES = re.compile(r"\b(FROM|JOIN|VIEW|TABLE)(\s+)(\w+)\b(?!\s*[.(])")
_MAKER = "CURRENT_USER"
LENT = "SQL SECURITY DEFINER"
"""Of a view that reads with the rights of who made it. ClickHouse gives it a query of its own, and with that tables that may
change between its parts: an hour that is summed up at that moment may count twice or not at all. Hence only for an analyst."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of migrations/: statements that may run any number of times."""

    number: int
    name: str
    statements: tuple[str, ...]
    checksum: str

    @property
    def tables(self) -> tuple[str, ...]:
        """The statements that are run: all but those of views."""
        return tuple(statement for statement in self.statements if not _VIEW.match(statement))

    @property
    def views(self) -> frozenset[str]:
        """Names of the views that this file made before views had files of their own."""
        return frozenset(match[1] for statement in self.statements if (match := _VIEW.match(statement)))


@dataclass(frozen=True, slots=True)
class SqlView:
    """One file of views/."""

    name: str
    statement: str
    reads: frozenset[str]
    """Names of the views it reads."""
    checksum: str
    """Of the file, of the views it reads and of the migrations: a view keeps the columns and types it was made with."""
    comments: str = ""
    """The statement that says what its columns mean; '' for a view that is not public."""

    @property
    def public(self) -> bool:
        """Whether it is for people, rather than for other views and our own queries."""
        return is_public(self.name)

    def made(self, internal_database: str, helpers: Collection[str], *, lent: bool = False) -> str:
        """The statement that makes it; `helpers` are the names of the views of that database.

        `lent`: a public one lends its readers the rights of who makes it.
        """
        rights = f"DEFINER = {_MAKER} {LENT} " if lent and self.public else ""
        head = f"VIEW {self.name} {rights}AS"
        return in_database(self.statement, internal_database, helpers).replace(f"VIEW {self.name} AS", head, 1)


@dataclass(frozen=True, slots=True)
class MadeView:
    """What is recorded of a view when it was made."""

    checksum: str
    definition: str
    """Checksum of the definition as ClickHouse showed it then."""


@cache
def migrations() -> tuple[Migration, ...]:
    """The packaged migrations in order. Raises ValueError for a wrong name or a number used twice."""
    found = []
    for file_name, text in _sql_files("migrations").items():
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", file_name)
        if match is None:
            raise ValueError(f"{file_name} is not named NNNN_name.sql")
        found.append(Migration(int(match[1]), match[2], split_statements(text), checksum_of(text)))
    found.sort(key=lambda migration: migration.number)
    numbers = [migration.number for migration in found]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"migrations are numbered {numbers}: a number is there twice")
    return tuple(found)


@cache
def sql_views() -> tuple[SqlView, ...]:
    """The packaged views, each after those it reads. Raises ValueError for a file that is not one view of its name."""
    return read_views(
        _sql_files("views"), checksum_of(*(migration.checksum for migration in migrations())), comments_on
    )


def is_public(view: str) -> bool:
    """Whether a view is for people: columns.yaml says what it means."""
    return view in texts()[1]


@cache
def helper_views() -> frozenset[str]:
    """Names of the packaged views that are not public."""
    return frozenset(view.name for view in sql_views() if not view.public)


def in_database(sql: str, database: str, names: Collection[str]) -> str:
    """The statement with those of the named views that it reads or makes in that database."""
    return _NAMES.sub(
        lambda match: f"{match[1]}{match[2]}`{database}`.{match[3]}" if match[3] in names else match[0], sql
    )


def read_views(
    files_read: Mapping[str, str], tables: str, comments: Callable[[str, Mapping[str, str]], str] = lambda _, __: ""
) -> tuple[SqlView, ...]:
    """Views out of files (name → text), each after those it reads; `tables` is a checksum of all tables.

    `comments` gives the statement that comments on a view, of its name and all statements.

    Raises ValueError for a file that is not one view of its name, and for views that read each other in a circle.
    """
    statements = {}
    for file_name, text in files_read.items():
        name = file_name.removesuffix(".sql")
        parts = split_statements(text)
        match = _VIEW.match(parts[0]) if len(parts) == 1 else None
        if match is None or match[1] != name:
            raise ValueError(f"views/{file_name} is not one CREATE OR REPLACE VIEW {name} AS ...")
        statements[name] = parts[0]
    reads = {name: frozenset(_READS.findall(text)) & statements.keys() for name, text in statements.items()}
    try:
        order = list(TopologicalSorter({name: sorted(reads[name]) for name in sorted(reads)}).static_order())
    except CycleError as exc:
        raise ValueError(f"views read each other in a circle: {', '.join(exc.args[1])}") from exc
    checksums: dict[str, str] = {}
    said = {name: comments(name, statements) for name in order}
    for name in order:
        below = (checksums[other] for other in sorted(reads[name]))
        checksums[name] = checksum_of(files_read[f"{name}.sql"], tables, *below, *filter(None, [said[name]]))
    return tuple(SqlView(name, statements[name], reads[name], checksums[name], said[name]) for name in order)


def summed_up() -> frozenset[str]:
    """Names of the views that the sums of hours are taken from (queries/hour_sums.sql)."""
    query = files("sinks").joinpath("queries", "hour_sums.sql").read_text("utf-8")
    return frozenset(_READS.findall(query)) & {view.name for view in sql_views()}


def folder_checksum(views: Sequence[SqlView]) -> str:
    """One checksum of all views together: which version of Heliograph they belong to."""
    return checksum_of(*(f"{view.name} {view.checksum}" for view in sorted(views, key=lambda view: view.name)))


def differences(
    views: Sequence[SqlView], made: Mapping[str, MadeView], stored: Mapping[str, str], once: Collection[str] = ()
) -> dict[str, ViewDifference]:
    """The rows of the table above: name → difference, files first and in their order.

    `made` is what was recorded at the last time, `stored` the checksums of the definitions that the store shows now (name →
    checksum), `once` names of views that were made before there was a record.
    """
    found = {view.name: difference for view in views if (difference := _difference(view, made, stored))}
    ours = (made.keys() | set(once)) - {view.name for view in views}
    return {**found, **dict.fromkeys(sorted(ours & stored.keys()), "removed")}


def _difference(view: SqlView, made: Mapping[str, MadeView], stored: Mapping[str, str]) -> ViewDifference | None:
    if view.name not in stored:
        return "missing"
    if view.name not in made or made[view.name].checksum != view.checksum:
        return "outdated"
    return "edited" if made[view.name].definition != stored[view.name] else None


def split_statements(text: str) -> tuple[str, ...]:
    """The statements of a file: each ends with `;` at the end of a line; lines of comment alone are dropped."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("--")]
    return tuple(part.strip() for part in re.split(r";\s*(?:\n|\Z)", "\n".join(lines)) if part.strip())


def checksum_of(*parts: str) -> str:
    """SHA-256 in hex, of the text alone where one part is given."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sql_files(folder: str) -> dict[str, str]:
    """The .sql files of a folder of this package: name → text."""
    paths = files("sinks").joinpath(folder).iterdir()
    return {path.name: path.read_text("utf-8") for path in paths if path.name.endswith(".sql")}
