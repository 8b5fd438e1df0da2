"""Webhooks in PostgreSQL: every change shares a transaction with its outbox row.

May import psycopg. Never: checks of what a caller wrote (api), a secret that is not sealed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, LiteralString
from uuid import UUID

from producers.reference.database import Connection, Database
from producers.reference.records import OutboxRow, endpoint_key, endpoint_row
from producers.reference.store import NotFoundError, Row, Written, put_outbox
from runtime.clock import Clock, system_clock
from schemas.topics import ENDPOINTS

MAX_PER_TENANT = 50
"""Each of them is told every fact that it wants: so many copies a fact may have."""


class TooManyError(Exception):
    """The tenant has MAX_PER_TENANT of them."""


class WebhookStore:
    """Webhooks of all tenants; every method takes the tenant of the caller's key."""

    def __init__(self, database: Database, clock: Clock = system_clock) -> None:
        self._database, self._clock = database, clock

    async def create(self, tenant: str, webhook_id: UUID, webhook: Mapping[str, Any], sealed: bytes) -> Written:
        """`webhook` has the url, description, states, channels, categories and enabled. Raises TooManyError."""
        values = {**webhook, "tenant": tenant, "id": webhook_id, "secret": sealed, "now": self._clock()}

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                # Two that are made at once must see each other.
                await connection.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"webhooks:{tenant}",)
                )
                cursor = await connection.execute("SELECT count(*) AS n FROM webhooks WHERE tenant = %s", (tenant,))
                if (counted := await cursor.fetchone()) is not None and counted["n"] >= MAX_PER_TENANT:
                    raise TooManyError
                cursor = await connection.execute(
                    "INSERT INTO webhooks (tenant, webhook_id, url, description, states, channels, categories, enabled,"
                    " secret, since, created_at, updated_at) VALUES (%(tenant)s, %(id)s, %(url)s, %(description)s,"
                    " %(states)s, %(channels)s, %(categories)s, %(enabled)s, %(secret)s, %(now)s, %(now)s, %(now)s)"
                    " RETURNING *",
                    values,
                )
                return await _written(connection, await cursor.fetchone(), created=True)

        return await self._database.run(operation)

    async def get(self, tenant: str, webhook_id: UUID) -> Row:
        """Raises NotFoundError."""

        async def operation(connection: Connection) -> Row:
            return await _one(
                connection, "SELECT * FROM webhooks WHERE tenant = %s AND webhook_id = %s", tenant, webhook_id
            )

        return await self._database.run(operation)

    async def page(self, tenant: str, after: UUID | None, limit: int) -> list[Row]:
        """By id, those after `after`."""

        async def operation(connection: Connection) -> list[Row]:
            cursor = await connection.execute(
                "SELECT * FROM webhooks WHERE tenant = %s AND (%s::uuid IS NULL OR webhook_id > %s) ORDER BY webhook_id"
                " LIMIT %s",
                (tenant, after, after, limit),
            )
            return await cursor.fetchall()

        return await self._database.run(operation)

    async def change(self, tenant: str, webhook_id: UUID, changes: Mapping[str, Any]) -> Written:
        """Set the fields that `changes` has, of those that `create` takes. Raises NotFoundError."""
        values = {
            name: changes.get(name) for name in ("url", "description", "states", "channels", "categories", "enabled")
        }
        return await self._update(
            tenant,
            webhook_id,
            "url = COALESCE(%(url)s, url), description = COALESCE(%(description)s, description),"
            " states = COALESCE(%(states)s::text[], states), channels = COALESCE(%(channels)s::text[], channels),"
            " categories = COALESCE(%(categories)s::text[], categories), enabled = COALESCE(%(enabled)s, enabled)",
            values,
        )

    async def rotate(self, tenant: str, webhook_id: UUID, sealed: bytes, until: int) -> Written:
        """Another secret; the one before signs as well until a time (ms). Raises NotFoundError."""
        return await self._update(
            tenant,
            webhook_id,
            "previous_secret = secret, previous_until = %(until)s, secret = %(secret)s",
            {"secret": sealed, "until": until},
        )

    async def replay(self, tenant: str, webhook_id: UUID, since: int) -> Written:
        """Send what was published since a time (ms) again, or for the first time. Raises NotFoundError."""
        return await self._update(tenant, webhook_id, "since = %(since)s, replays = replays + 1", {"since": since})

    async def delete(self, tenant: str, webhook_id: UUID) -> Written:
        """Raises NotFoundError."""

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                row = await _one(
                    connection,
                    "DELETE FROM webhooks WHERE tenant = %s AND webhook_id = %s RETURNING *",
                    tenant,
                    webhook_id,
                )
                tombstone = OutboxRow(ENDPOINTS, endpoint_key(row), None)
                return Written(row, await put_outbox(connection, [tombstone]), created=False)

        return await self._database.run(operation)

    async def _update(
        self, tenant: str, webhook_id: UUID, changes: LiteralString, values: Mapping[str, Any]
    ) -> Written:
        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    f"UPDATE webhooks SET {changes}, version = version + 1, updated_at = %(now)s"
                    " WHERE tenant = %(tenant)s AND webhook_id = %(id)s RETURNING *",
                    {**values, "tenant": tenant, "id": webhook_id, "now": self._clock()},
                )
                return await _written(connection, await cursor.fetchone(), created=False)

        return await self._database.run(operation)


async def _one(connection: Connection, query: LiteralString, tenant: str, webhook_id: UUID) -> Row:
    row = await (await connection.execute(query, (tenant, webhook_id))).fetchone()
    if row is None:
        raise NotFoundError
    return row


async def _written(connection: Connection, row: Row | None, *, created: bool) -> Written:
    if row is None:
        raise NotFoundError
    return Written(row, await put_outbox(connection, [endpoint_row(row)]), created=created)
