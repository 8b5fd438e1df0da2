"""Steps that make an empty PostgreSQL ours at every start of a local stack; idempotent.

May import producers.reference. Never: data of a demo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from producers.reference.keys import keep_or_create_key
from producers.reference.schema import migrate
from runtime.settings import Settings


class Initialisation(Protocol):
    """The settings of the roles, the local tenant, and what earlier steps and starts published."""

    @property
    def settings(self) -> Settings: ...
    @property
    def tenant(self) -> str: ...
    @property
    def published(self) -> Mapping[str, str]: ...


def migrate_tables(context: Initialisation) -> None:
    """Bring the tables up to date."""
    migrate(context.settings.postgres.dsn.get_secret_value())


def local_api_key(context: Initialisation) -> Mapping[str, str]:
    """{"api_key": ...}: the one of the last start while it is valid, else a new one."""
    settings = context.settings
    key = keep_or_create_key(
        settings.postgres.dsn.get_secret_value(),
        context.tenant,
        context.published.get("api_key"),
        pepper=settings.api.key_pepper,
    )
    return {"api_key": key}
