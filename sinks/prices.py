"""What each provider account charges, put where queries can join it: `provider_prices`.

May import sinks.clickhouse, runtime's settings. Never: a sum; a provider's name that no setting has.
"""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from runtime.settings import Settings
from sinks import clickhouse

_COLUMNS = {
    "provider": "LowCardinality(String)",
    "channel": "LowCardinality(String)",
    "price_per_message": "Nullable(Decimal(18, 6))",
    "currency": "LowCardinality(String)",
    "updated_at": "DateTime64(3, 'UTC')",
}


def write_prices(settings: Settings, client: Client, now: int) -> None:
    """Write every configured account, also one without a price: it may have had one. Raises UnavailableError, StoreError.

    An account that is in no settings any more keeps its last price, since its messages still cost what they cost.
    """
    if not settings.providers:
        return
    rows = [(p.name, p.channel, p.price_per_message, p.currency or "", now) for p in settings.providers]
    clickhouse.insert(settings.clickhouse, client, "provider_prices", _COLUMNS, list(zip(*rows, strict=True)))
