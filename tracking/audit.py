"""Does everything add up? accepted = settled + in flight, hour by hour, and nothing is left over.

It asks ClickHouse itself, as an operator does: all tenants unless one is named.
May import sinks. Never: a number of its own (the views say what counts), a screen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.settings import ClickHouseSettings
from schemas.events import states
from schemas.identity import HOUR_S
from sinks import clickhouse

MAX_FINDINGS = 1_000
TIMEOUT_S = 300.0

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Audit:
    """Rows of v_accounting and, where a residual is not 0, of v_residual."""

    hours: Sequence[Row]
    findings: Sequence[Row]
    missing: int | None = None
    """Requests that the sink has committed and ClickHouse lacks; None: not compared."""

    @property
    def totals(self) -> dict[str, int]:
        """The sums of every number."""
        return {name: sum(row[name] for row in self.hours) for name in columns()}

    @property
    def adds_up(self) -> bool:
        """Whether nothing is left over, and nothing is known to be missing."""
        return not self.missing and all(row["residual"] == 0 for row in self.hours)


def columns() -> list[str]:
    """The numbers of v_accounting."""
    return ["accepted", *states().reasons, "in_flight", "residual"]


def audit_hours(settings: ClickHouseSettings, tenant: str, since: int, until: int) -> Audit:
    """Ask for the hours from `since` to `until` (seconds). Raises UnavailableError, StoreError."""
    client = clickhouse.connect(settings, timeout_s=TIMEOUT_S)
    try:
        asked = {"tenant": tenant, "since": since // HOUR_S * HOUR_S, "until": until // HOUR_S * HOUR_S}
        hours = clickhouse.select(settings, client, "audit", asked)
        if all(row["residual"] == 0 for row in hours):
            return Audit(hours, ())
        limited = {**asked, "limit": MAX_FINDINGS}
        return Audit(hours, clickhouse.select(settings, client, "audit_findings", limited))
    finally:
        client.close()
