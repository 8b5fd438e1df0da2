"""A piece of a batch into its table: decoded by ClickHouse, or here.

Both ways make the same row of the same bytes (inserts/*.sql and rows.py; tests/integration/test_storing.py holds one against
the other), so which of them a record took is nobody's concern.
May import batching and clickhouse. What never enters here: Kafka, what is tried again.
"""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from runtime.metrics import DECODED
from runtime.settings import ClickHouseSettings
from sinks import clickhouse
from sinks.batching import Piece, Poison, columns_of, container_of, decoded
from sinks.rows import INSERT_CONSTANTS


def store_piece(settings: ClickHouseSettings, client: Client, piece: Piece) -> tuple[int, list[Poison]]:
    """How many rows were stored, and what is none. Raises UnreadableError, StoreError or UnavailableError."""
    table = piece.table
    if not piece.decode:
        container = container_of(piece)
        constants = {**INSERT_CONSTANTS, "mark": f"'{container.mark.hex()}'"}
        clickhouse.insert_undecoded(settings, client, table.name, container.parts(), constants)
        return container.count, []
    rows, poison = decoded(piece)
    if rows:
        clickhouse.insert(settings, client, table.name, table.columns, columns_of(rows))
    DECODED.labels(table.name).inc(piece.count)
    return len(rows), poison
