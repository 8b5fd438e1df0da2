"""Who may read: the analyst, a user of ClickHouse who reads the public views, within limits, and nothing else.

Rights are given on views alone, which read with the rights of who made them where there is an analyst (schema_files), so the
tables and the helper views are neither readable nor shown. The bytes of dead letters may hold addresses of any tenant, so their columns are left out.
Where tenants are named, a row policy lets those through, and a view that has no tenant is left out.
May import clickhouse, columns, schema_files and runtime settings. Never: a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from runtime.settings import AnalystSettings, ClickHouseSettings
from sinks.clickhouse import StoreError, connect, store_errors
from sinks.columns import columns_of, quoted
from sinks.schema_files import sql_views

HIDDEN = {"dead_letters": ("key", "value")}
"""Columns of public views that are not for an analyst."""
_THEIRS, _OTHERS = "heliograph_analyst", "heliograph_others"


def make_analyst(settings: ClickHouseSettings) -> list[str]:
    """Make the analyst of the settings, or bring it up to date; names of the views it may read, [] where none is asked for.

    Raises UnavailableError, and StoreError where ClickHouse keeps no users or ours may not make any.
    """
    if settings.analyst.username is None:
        return []
    client = connect(settings)
    try:
        with store_errors(settings):
            for statement in analyst_statements(settings.database, settings.analyst):
                client.command(statement)
    except StoreError as exc:
        raise StoreError(
            f"{exc}; this was to make the user of HELIOGRAPH_CLICKHOUSE__ANALYST__USERNAME: give {settings.username} the right "
            "to make users (access_management), or leave that setting out"
        ) from exc
    finally:
        client.close()
    return [name for name, _ in _readable(settings.analyst)]


def analyst_statements(database: str, analyst: AnalystSettings) -> list[str]:
    """The statements, which may run any number of times: the last run decides."""
    user = f"`{analyst.username}`"
    # Its hash, so that no log of queries has the password.
    secret = hashlib.sha256(analyst.password.get_secret_value().encode()).hexdigest()
    rights = ", ".join(
        f"SELECT({', '.join(f'`{column}`' for column in columns)}) ON `{database}`.{name}"
        if name in HIDDEN
        else f"SELECT ON `{database}`.{name}"
        for name, columns in _readable(analyst)
    )
    of_tenants = ", ".join(f"`{database}`.{name}" for name, columns in _public() if "tenant" in columns)
    statements = [
        f"CREATE USER IF NOT EXISTS {user} IDENTIFIED WITH sha256_hash BY '{secret}'",
        f"ALTER USER {user} IDENTIFIED WITH sha256_hash BY '{secret}' DEFAULT DATABASE `{database}` "
        f"SETTINGS {limits_of(analyst)}",
    ]
    if analyst.tenants:
        tenants = ", ".join(quoted(tenant) for tenant in analyst.tenants)
        # Policies before rights. Without the second, a server may be set up so that nobody else reads a row.
        statements += [
            f"CREATE ROW POLICY OR REPLACE {_THEIRS} ON {of_tenants} FOR SELECT USING tenant IN ({tenants}) TO {user}",
            f"CREATE ROW POLICY OR REPLACE {_OTHERS} ON {of_tenants} FOR SELECT USING 1 TO ALL EXCEPT {user}",
        ]
    else:
        statements += [f"DROP ROW POLICY IF EXISTS {policy} ON {of_tenants}" for policy in (_THEIRS, _OTHERS)]
    return [*statements, f"GRANT {rights} TO {user} WITH REPLACE OPTION"]


def limits_of(analyst: AnalystSettings) -> str:
    """What a query of the analyst may take at most; it may ask for less. 0 would be no limit."""
    limits = {
        "max_execution_time": analyst.max_execution_s,
        "max_memory_usage": analyst.max_memory_bytes,
        "max_result_rows": analyst.max_result_rows,
    }
    return ", ".join(["readonly = 2", *(f"{name} = {most} MIN 1 MAX {most}" for name, most in limits.items())])


def _readable(analyst: AnalystSettings) -> list[tuple[str, Sequence[str]]]:
    """The public views for that analyst, and their columns that are."""
    return [
        (name, [column for column in columns if column not in HIDDEN.get(name, ())])
        for name, columns in _public()
        if "tenant" in columns or not analyst.tenants
    ]


def _public() -> list[tuple[str, Sequence[str]]]:
    statements = {view.name: view.statement for view in sql_views()}
    return sorted((view.name, columns_of(view.name, statements)) for view in sql_views() if view.public)
