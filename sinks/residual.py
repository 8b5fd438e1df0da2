"""The residual of the accounting as a gauge: asked of the store now and then, so that an alert needs no SQL.

Apart from the loop that writes: a store that is slow to answer must not hold the rows up.
May import runtime. Never: what makes a residual (the query says it), what to do about it.
"""

from __future__ import annotations

import asyncio

from clickhouse_connect.driver.client import Client

from runtime.clock import system_monotonic
from runtime.errors import HeliographError
from runtime.logs import get_logger
from runtime.metrics import RESIDUAL
from runtime.settings import ClickHouseSettings
from sinks import clickhouse

log = get_logger("residual")

INTERVAL_S = 60.0
IDLE_FACTOR = 20
"""The question may take a twentieth of the time: a large store is asked less often."""
TIMEOUT_S = 10.0
"""Below the time that an orderly stop has."""


class Residual:
    """Asks the store; one thread at a time."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings
        self._client: Client | None = None

    def measure(self) -> None:
        """Set the gauge; with no answer there is no value, which is another thing than 0."""
        try:
            if self._client is None:
                self._client = clickhouse.connect(self._settings, timeout_s=TIMEOUT_S, connections=1)
            (row,) = clickhouse.select(self._settings, self._client, "residual")
        except HeliographError as exc:
            log.info("residual not measured", error=str(exc))
            RESIDUAL.clear()
            self.close()
            return
        for finding, count in row.items():
            RESIDUAL.labels(finding).set(count)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


async def report_residual(settings: ClickHouseSettings, stopping: asyncio.Event) -> None:
    """Update the gauge until stopped."""
    residual = Residual(settings)
    try:
        while not stopping.is_set():
            began = system_monotonic()
            await asyncio.to_thread(residual.measure)
            try:
                await asyncio.wait_for(stopping.wait(), max(INTERVAL_S, IDLE_FACTOR * (system_monotonic() - began)))
            except TimeoutError:
                continue
    finally:
        residual.close()
