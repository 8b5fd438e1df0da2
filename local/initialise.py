"""What turns empty stores into ours at every start of a local stack: INITIALISERS, in order.

Each is named by `module:function`, imported only when it runs, idempotent, and gets an Initialisation. What it returns is
kept and published in endpoints.json, so the one that makes the local API key returns {"api_key": ...}, and finds it in
`context.published` at the next start.

May import everything below console. Never: data of a demo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from runtime import topics
from runtime.kafka.admin import Admin
from runtime.settings import Settings

INITIALISERS: tuple[str, ...] = (
    "local.initialise:apply_topics",
    "producers.reference.initialise:migrate_tables",
    "local.initialise:migrate_clickhouse",
    "producers.reference.initialise:local_api_key",
)


@dataclass(frozen=True, slots=True)
class Initialisation:
    """What an initialiser is given: stores that answer, the settings of the roles, and what was published last time."""

    settings: Settings
    tenant: str
    published: Mapping[str, str]


class Initialiser(Protocol):
    """Brings a store into the shape the roles expect."""

    def __call__(self, context: Initialisation, /) -> Mapping[str, str] | None: ...


def apply_topics(context: Initialisation) -> None:
    """Create the topics of the catalogue."""
    topics.apply(Admin(context.settings.kafka), context.settings.partitions)


def migrate_clickhouse(context: Initialisation) -> None:
    """Bring ClickHouse's tables and views up to date."""
    from sinks.schema import migrate

    migrate(context.settings.clickhouse, replace_newer=True)
