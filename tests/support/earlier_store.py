"""A ClickHouse database as an earlier release left it: migrations that made views too, and no record of views.

May import clickhouse-connect and the sink.
"""

from __future__ import annotations

from collections.abc import Sequence

from clickhouse_connect.driver.client import Client

from runtime.records import ConsumerRecord
from runtime.settings import ClickHouseSettings
from sinks import clickhouse
from sinks.rows import row_of
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


def insert_as_earlier(settings: ClickHouseSettings, client: Client, records: Sequence[ConsumerRecord]) -> None:
    """Insert records as a sink of that release did: without the columns that came later."""
    by_table: dict[str, list[dict[str, object]]] = {}
    kinds: dict[str, str] = {}
    for record in records:
        table, row = row_of(record)
        by_table.setdefault(table.name, []).append(dict(zip(table.columns, row, strict=True)))
        kinds.update({f"{table.name}.{column}": kind for column, kind in table.columns.items()})
    for name, rows in by_table.items():
        there = {column[0] for column in client.query(f"DESCRIBE TABLE {name}").result_rows}
        columns = {column: kinds[f"{name}.{column}"] for column in rows[0] if column in there}
        clickhouse.insert(settings, client, name, columns, [[row[column] for row in rows] for column in columns])
