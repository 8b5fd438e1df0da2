"""A batch into its tables, chunk by chunk: decoded by ClickHouse, or here.

Both ways make the same row of the same bytes (inserts/*.sql and rows.py; tests/integration/test_storing.py compares them), so
it makes no difference which of them a record took.
May import batching and clickhouse. Never: Kafka, what is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from clickhouse_connect.driver.client import Client

from runtime.clock import system_clock
from runtime.logs import get_logger
from runtime.metrics import DECODED, INSERT_SECONDS, ROWS
from runtime.settings import ClickHouseSettings
from sinks import clickhouse
from sinks.batching import Batch, Chunk, Poison, columns_of, container_of, decoded
from sinks.rows import INSERT_CONSTANTS, STORED_AT, Row

log = get_logger("sink")


def store_batch(settings: ClickHouseSettings, client: Client, batch: Batch) -> int:
    """Store what is left of a batch, and keep records that are not valid rows apart; returns the number of inserts.

    Stored rows leave the batch, so that a retry handles only the rest. Raises StoreError or UnavailableError.
    """
    inserts = 0
    for chunk in batch.chunks():
        started, table = time.perf_counter(), chunk.table.name
        try:
            rows, poison = store_chunk(settings, client, chunk)
        except clickhouse.UnreadableError as exc:
            log.warning("decodes what the store cannot read", table=table, records=chunk.count, error=str(exc))
            batch.break_up()
            continue
        batch.done(poison)
        INSERT_SECONDS.labels(table).observe(time.perf_counter() - started)
        ROWS.labels(table).inc(rows)
        inserts += 1
    return inserts


def _now(rows: Sequence[Row]) -> list[int]:
    return [system_clock()] * len(rows)


def store_chunk(settings: ClickHouseSettings, client: Client, chunk: Chunk) -> tuple[int, list[Poison]]:
    """(rows stored, records that are not valid rows). Raises UnreadableError, StoreError or UnavailableError."""
    table = chunk.table
    if not chunk.decode:
        container = container_of(chunk)
        constants = {**INSERT_CONSTANTS, "mark": f"'{container.mark.hex()}'"}
        clickhouse.insert_undecoded(settings, client, table.name, container.parts(), constants)
        return container.count, []
    rows, poison = decoded(chunk)
    if rows:
        clickhouse.insert(settings, client, table.name, {**table.columns, **STORED_AT}, [*columns_of(rows), _now(rows)])
    DECODED.labels(table.name).inc(chunk.count)
    return len(rows), poison
