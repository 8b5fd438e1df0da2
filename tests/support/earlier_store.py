"""A ClickHouse database as an earlier release left it: migrations that made views too, and no record of views.

May import clickhouse-connect and the sink's schema. Never: rows.
"""

from __future__ import annotations

from runtime.settings import ClickHouseSettings
from sinks import clickhouse
from sinks.schema_files import migrations

RELEASED = 9
"""Migrations there were when views got files of their own."""
_LEDGER = (
    "CREATE TABLE schema_migrations (number UInt32, name String, checksum String, applied_at DateTime64(3, 'UTC') "
    "DEFAULT now64(3, 'UTC')) ENGINE = ReplacingMergeTree ORDER BY number"
)


def make_earlier_store(settings: ClickHouseSettings, upto: int = RELEASED) -> None:
    """Run every statement of migrations 1 to `upto`, those of views included, in a new database."""
    server = clickhouse.connect(settings, database="default")
    server.command(f"CREATE DATABASE `{settings.database}`")
    server.close()
    client = clickhouse.connect(settings)
    client.command(_LEDGER)
    ran = migrations()[:upto]
    for migration in ran:
        for statement in migration.statements:
            client.command(statement)
    rows = [[migration.number, migration.name, migration.checksum] for migration in ran]
    client.insert("schema_migrations", rows, column_names=["number", "name", "checksum"])
    client.close()
