"""Bring ClickHouse up to date: the migrations that have not run yet, then the SQL views that differ from their files.

Two tables keep what was done: `schema_migrations` a row per migration, `schema_views` a row per view each time that views were
made. Every statement is idempotent, so several processes may do this at once.

While versions are replaced one by one, a process of the older version may start after one of the newer. It finds its own
views in the record, superseded by others, and leaves those alone; `heliograph migrate` puts its own back.
May import runtime settings and errors. Never: the meaning of a column.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from clickhouse_connect.driver.client import Client

from runtime.errors import UnavailableError
from runtime.logs import get_logger
from runtime.settings import ClickHouseSettings
from sinks.clickhouse import StoreError, connect, store_errors
from sinks.schema_files import (
    LENT,
    MadeView,
    Migration,
    SqlView,
    ViewDifference,
    checksum_of,
    differences,
    folder_checksum,
    migrations,
    sql_views,
    summed_up,
)

log = get_logger("clickhouse")

OLDEST = (25, 12)
"""Older versions answer one query from several states of the tables: an hour that changes during it would count twice."""
_ASIDE = re.compile(r" COMMENT '(?:[^'\\]|\\.)*'| (?:DEFINER = \S+ )?SQL SECURITY \w+")
_ATTEMPTS = 5
_TIMEOUT_S = 120
_MIGRATIONS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    number UInt32,
    name String,
    checksum String,
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY number
"""
# The rows of one time are inserted together and share applied_at; the greatest is how things are now.
_VIEWS_TABLE = """
CREATE TABLE IF NOT EXISTS schema_views
(
    applied_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    folder String COMMENT 'checksum of all views that were made together',
    name String,
    checksum String COMMENT 'of the file, the views it reads and the migrations',
    definition String COMMENT 'checksum of the definition as the store showed it'
)
ENGINE = MergeTree
ORDER BY (applied_at, name)
"""


@dataclass(frozen=True, slots=True)
class StoredViews:
    """The SQL views of a store, and what is recorded of them."""

    stored: Mapping[str, str] = field(default_factory=dict)
    """Name → checksum of the definition that the store shows, whoever made it."""
    made: Mapping[str, MadeView] = field(default_factory=dict)
    """Name → what was recorded of it when views were made the last time."""
    folder: str = ""
    """Checksum of all views of that time together, '' before the first."""
    earlier: frozenset[str] = frozenset()
    """Such checksums of the times before."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Name → database of the views that the store shows."""
    lent: bool = False
    """Whether its public views lend their readers the rights of who made them."""
    strays: tuple[str, ...] = ()
    """Helper views in the database of the public ones, where earlier versions had them."""


@dataclass(frozen=True, slots=True)
class ViewsReport:
    """How the views of a store differ from the files of this version."""

    differences: Mapping[str, ViewDifference]
    """Name → difference, in the order in which they are to be made."""
    superseded: bool
    """The views of this version were there, and another version made its own since."""


def migrate(settings: ClickHouseSettings, *, replace_newer: bool = False) -> list[str]:
    """Create the databases, run what has not run yet, and make the views as their files say; returns names of what was done.

    With `replace_newer` the views of a newer version are replaced by this one's. Raises UnavailableError when ClickHouse
    cannot be reached, StoreError when it is too old, or a migration is refused or was changed after it ran.
    """
    _create_databases(settings)
    client = connect(settings, timeout_s=_TIMEOUT_S)
    try:
        applied = _apply_migrations(settings, client)
        return applied + _apply_views(settings, client, replace_newer=replace_newer)
    finally:
        client.close()


def _create_databases(settings: ClickHouseSettings) -> None:
    client = connect(settings, database="default", timeout_s=_TIMEOUT_S)
    try:
        version = client.server_version or "0.0"
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            raise StoreError(f"ClickHouse at {settings.url} is {version}: use {OLDEST[0]}.{OLDEST[1]} or a newer one")
        with store_errors(settings):
            for database in (settings.database, settings.internal_database):
                client.command(f"CREATE DATABASE IF NOT EXISTS `{database}`")
    finally:
        client.close()


# ---------------------------------------------------------------- migrations


def _apply_migrations(settings: ClickHouseSettings, client: Client) -> list[str]:
    _repeat(settings, client, _MIGRATIONS_TABLE)
    with store_errors(settings):
        rows = client.query("SELECT number, checksum FROM schema_migrations FINAL").result_rows
    applied = {int(number): str(checksum) for number, checksum in rows}
    return [_apply(settings, client, m) for m in migrations() if _is_new(settings, m, applied.get(m.number))]


def _is_new(settings: ClickHouseSettings, migration: Migration, checksum: str | None) -> bool:
    if checksum is not None and checksum != migration.checksum:
        raise StoreError(
            f"migration {migration.number:04d}_{migration.name} ran in {settings.database} in another form: add a new "
            "migration instead of changing one that ran"
        )
    return checksum is None


def _apply(settings: ClickHouseSettings, client: Client, migration: Migration) -> str:
    for statement in migration.tables:
        _repeat(settings, client, statement)
    name = f"{migration.number:04d}_{migration.name}"
    with store_errors(settings):
        client.insert(
            "schema_migrations",
            [[migration.number, migration.name, migration.checksum]],
            column_names=["number", "name", "checksum"],
        )
    log.info("migrated", migration=name, database=settings.database)
    return name


# ---------------------------------------------------------------- views


def compare_views(settings: ClickHouseSettings, client: Client) -> ViewsReport:
    """How the views of the store differ from their files; the client may be one of any database.

    Raises UnavailableError or StoreError.
    """
    return _report(read_views_of(settings, client))


def _report(there: StoredViews) -> ViewsReport:
    views = sql_views()
    once = frozenset[str]().union(*(migration.views for migration in migrations()))
    folder = folder_checksum(views)
    return ViewsReport(
        differences=differences(views, there.made, there.stored, once),
        superseded=folder != there.folder and folder in there.earlier,
    )


def read_views_of(settings: ClickHouseSettings, client: Client) -> StoredViews:
    """The views of the settings' database, and the record of them. Raises UnavailableError or StoreError."""
    with store_errors(settings):
        tables = client.query(
            "SELECT name, database, engine, create_table_query FROM system.tables "
            "WHERE (database = {database:String} AND (engine = 'View' OR name = 'schema_views')) "
            "OR (database = {internal:String} AND engine = 'View')",
            parameters={"database": settings.database, "internal": settings.internal_database},
        ).result_rows
        views = [(str(name), str(place), str(query)) for name, place, engine, query in tables if engine == "View"]
        helpers = {view.name for view in sql_views() if not view.public}
        strays = tuple(sorted(name for name, place, _ in views if name in helpers and place == settings.database))
        views = [view for view in views if view[0] not in helpers or view[1] != settings.database]
        # Comments come with a second statement, between which another process may look; rights are as there is an analyst.
        stored = {name: checksum_of(_ASIDE.sub("", query)) for name, _, query in views}
        lent = any(LENT in query for *_, query in views)
        places = {name: place for name, place, _ in views}
        found = StoredViews(stored=stored, places=places, lent=lent, strays=strays)
        if not any(name == "schema_views" for name, *_ in tables):
            return found
        rows = client.query(
            f"SELECT folder, name, checksum, definition, applied_at FROM `{settings.database}`.schema_views "
            "ORDER BY applied_at"
        ).result_rows
    if not rows:
        return found
    folder, *_, last = rows[-1]
    return replace(
        found,
        made={str(name): MadeView(str(checksum), str(shown)) for _, name, checksum, shown, at in rows if at == last},
        folder=str(folder),
        earlier=frozenset(str(other) for other, *_ in rows) - {str(folder)},
    )


def _apply_views(settings: ClickHouseSettings, client: Client, *, replace_newer: bool) -> list[str]:
    """Make the views that differ, drop those without a file, and record all of them."""
    _repeat(settings, client, _VIEWS_TABLE)
    there = read_views_of(settings, client)
    report = _report(there)
    # A process without the analyst's settings leaves the analyst its rights.
    lent = there.lent or settings.analyst.username is not None
    remade = [view.name for view in sql_views() if view.public and lent != there.lent]
    if not (report.differences or remade or there.strays) and there.folder == folder_checksum(sql_views()):
        return []
    if report.superseded and not replace_newer:
        log.info("views of another version kept", views=sorted(report.differences), database=settings.database)
        return []
    views = {view.name: view for view in sql_views()}
    helpers = {name for name, view in views.items() if not view.public}
    for name in dict.fromkeys([*report.differences, *remade]):
        # Those to drop come last: until then a view may read them that is replaced here.
        if name not in views:
            _repeat(settings, client, f"DROP VIEW IF EXISTS `{there.places[name]}`.{name}")
            continue
        _repeat(settings, client, views[name].made(settings.internal_database, helpers, lent=lent))
        if views[name].comments:
            _repeat(settings, client, views[name].comments)
    for name in there.strays:
        _repeat(settings, client, f"DROP VIEW IF EXISTS {name}")
    if report.differences.keys() & summed_up():
        # Kept sums are of the definitions there were.
        _repeat(settings, client, "TRUNCATE TABLE hour_sums")
    log.info("views made as their files say", was=dict(report.differences), database=settings.database)
    _record_views(settings, client, sql_views())
    done = {**dict.fromkeys(remade, "outdated"), **report.differences}
    return [f"{'removal of ' if was == 'removed' else ''}view {name}" for name, was in done.items()]


def _record_views(settings: ClickHouseSettings, client: Client, views: tuple[SqlView, ...]) -> None:
    stored = read_views_of(settings, client).stored
    folder = folder_checksum(views)
    # Not there: another process dropped it at this moment. It is missing at the next time as well.
    rows = [[folder, view.name, view.checksum, stored.get(view.name, "")] for view in views]
    with store_errors(settings):
        client.insert("schema_views", rows, column_names=["folder", "name", "checksum", "definition"])


def _repeat(settings: ClickHouseSettings, client: Client, statement: str) -> None:
    """Run a statement; another process that creates or replaces the same at this moment makes it fail for a moment."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with store_errors(settings):
                client.command(statement)
            return
        except (StoreError, UnavailableError):
            if attempt == _ATTEMPTS:
                raise
            time.sleep(0.1 * attempt)
