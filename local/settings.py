"""The settings of the local stack that runs in a directory, for commands that work on it.

May import local and runtime.settings. Never: a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from local.supervisor.state import StateFiles
from runtime.settings import ClickHouseSettings, KafkaSettings, PostgresSettings, ProviderSettings, Settings, read_toml


def stack_settings(settings: Settings, state_dir: Path, endpoints: Mapping[str, Any]) -> Settings:
    """The settings, moved to a stack's own stores, pepper and providers."""
    files = StateFiles(state_dir)
    pepper = files.read(files.secrets).get("key_pepper", "")
    return settings.model_copy(
        update={
            "kafka": KafkaSettings(bootstrap_servers=endpoints["kafka"]),
            "postgres": PostgresSettings(dsn=SecretStr(endpoints["postgres"])),
            "clickhouse": ClickHouseSettings(url=endpoints["clickhouse"], database=endpoints["clickhouse_database"]),
            "api": settings.api.model_copy(update={"key_pepper": SecretStr(pepper)}),
            "partitions": "local",
            "providers": tuple(ProviderSettings(**table) for table in read_toml(files.settings).get("providers", [])),
        }
    )
