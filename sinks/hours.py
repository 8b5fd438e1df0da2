"""Stored sums of closed hours: from time to time, computes those that are missing, a chunk at a time.

Nothing but speed depends on it: an hour without stored sums, or with sums of other states than now, is summed up by the
query that needs it. So a round may be killed, run twice at once, or never run.
May import runtime. Never: what is summed up (views/ and queries/ say it), when a kept sum holds.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from clickhouse_connect.driver.client import Client

from runtime.clock import system_monotonic
from runtime.errors import HeliographError
from runtime.logs import get_logger
from runtime.settings import ClickHouseSettings
from sinks import clickhouse

log = get_logger("hours")

INTERVAL_S = 60.0
IDLE_FACTOR = 5
"""Summing up may take a sixth of the time: what is left waits."""
TIMEOUT_S = 120
LOOKED_AT = 50_000
"""Hours of one round; the newest come first."""
CHUNK_TOUCHES = 250_000
CHUNK_HOURS = 500
"""Of one statement: about as many rows are summed up at once, which is what its memory goes by."""
POLL_S = 0.5

Hour = tuple[str, int]


class HourlySums:
    """Sums up closed hours; one thread at a time."""

    def __init__(self, settings: ClickHouseSettings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._before: dict[Hour, int] = {}
        self._failed: set[Hour] = set()

    def round(self, stopped: Callable[[], bool] = lambda: False) -> int:
        """Sum up the changed hours that are as the last round found them, until `stopped`; how many that were.

        An hour that is still being written to would only be summed up again. Raises UnavailableError or StoreError.
        """
        if self._client is None:
            self._client = clickhouse.connect(self._settings, timeout_s=TIMEOUT_S, connections=1)
        found = clickhouse.select(self._settings, self._client, "hours_changed", {"limit": LOOKED_AT})
        changed = {(str(row["tenant"]), int(row["hour"])): int(row["touches"]) for row in found}
        resting = [
            (hour, touches) for hour, touches in changed.items() if touches and self._before.get(hour) == touches
        ]
        # One hour that is too large for ClickHouse must not delay the others without end.
        resting.sort(key=lambda each: each[0] in self._failed)
        self._before = changed
        self._failed.intersection_update(changed)
        done = 0
        for chunk in _chunks(resting):
            if stopped():
                break
            self._sum_up(self._client, chunk)
            done += len(chunk)
        return done

    def _sum_up(self, client: Client, chunk: Sequence[tuple[Hour, int]]) -> None:
        parameters = {
            "tenants": [tenant for (tenant, _), _ in chunk],
            "hours": [hour for (_, hour), _ in chunk],
            "touches": [touches for _, touches in chunk],
        }
        try:
            with clickhouse.store_errors(self._settings):
                client.command(
                    clickhouse.query_text("hour_sums", self._settings.internal_database),
                    parameters=parameters,
                    settings={"max_execution_time": TIMEOUT_S},
                )
        except HeliographError:
            self._failed.update(hour for hour, _ in chunk)
            raise

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _chunks(hours: Sequence[tuple[Hour, int]]) -> Iterator[list[tuple[Hour, int]]]:
    """Runs of hours that are small enough for one statement; an hour that is not goes alone."""
    chunk: list[tuple[Hour, int]] = []
    total = 0
    for hour in hours:
        if chunk and (len(chunk) == CHUNK_HOURS or total + hour[1] > CHUNK_TOUCHES):
            yield chunk
            chunk, total = [], 0
        chunk.append(hour)
        total += hour[1]
    if chunk:
        yield chunk


def keep_hours(settings: ClickHouseSettings, stopped: Callable[[], bool]) -> threading.Thread:
    """A round now and then until `stopped`, on a thread that does not hold an end up: a round may be left at any point."""
    thread = threading.Thread(target=_keep, args=(settings, stopped), name="hours", daemon=True)
    thread.start()
    return thread


def _keep(settings: ClickHouseSettings, stopped: Callable[[], bool]) -> None:
    hours = HourlySums(settings)
    # Processes begin at different moments, so that they find each other's work.
    due = system_monotonic() + random.uniform(0, INTERVAL_S)
    while not stopped():
        if (began := system_monotonic()) < due:
            time.sleep(min(POLL_S, due - began))
            continue
        try:
            if done := hours.round(stopped):
                log.info("hours summed up", hours=done, seconds=round(system_monotonic() - began, 1))
        except HeliographError as exc:
            log.info("hours not summed up", error=str(exc))
            hours.close()
        due = system_monotonic() + max(INTERVAL_S, IDLE_FACTOR * (system_monotonic() - began))
    hours.close()
