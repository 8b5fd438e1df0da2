"""Which generation a resend has, decided by PostgreSQL.

May import psycopg. Never: the request that is sent again.
"""

from __future__ import annotations

from uuid import UUID

from producers.reference.database import Connection, Database
from runtime import ids
from runtime.clock import Clock, system_clock

RESENDABLE_MS = 400 * 86_400_000
"""A notification older than this is not resent. Its row is kept longer, so that a used generation is never reused."""
_KEPT_MS = RESENDABLE_MS + 86_400_000


def is_resendable(notification_id: str, now: int) -> bool:
    """Whether a notification is young enough to be sent again."""
    return ids.accepted_at(notification_id) >= now - RESENDABLE_MS


def forgotten_below(now: int) -> UUID:
    """Rows of notifications with a smaller id may be deleted: ids sort by their time."""
    return UUID(int=max(0, now - _KEPT_MS) << 80)


class Resends:
    """A counter per notification that moves on only after its last value reached Kafka."""

    def __init__(self, database: Database, clock: Clock = system_clock) -> None:
        self._database = database
        self._clock = clock

    async def reserve(self, tenant: str, notification_id: str, above: int) -> int:
        """The generation to publish, greater than `above`; that of the last reservation while it is not confirmed.

        Raises UnavailableError.
        """

        async def operation(connection: Connection) -> int:
            cursor = await connection.execute(
                "INSERT INTO resends AS r (tenant, notification_id, generation, requested_at)"
                " VALUES (%(tenant)s, %(id)s, %(first)s, %(now)s) ON CONFLICT (tenant, notification_id) DO UPDATE SET"
                " generation = CASE WHEN r.confirmed OR r.generation < EXCLUDED.generation"
                " THEN greatest(r.generation + 1, EXCLUDED.generation) ELSE r.generation END,"
                " confirmed = false, requested_at = EXCLUDED.requested_at RETURNING generation",
                {"tenant": tenant, "id": notification_id, "first": above + 1, "now": self._clock()},
            )
            row = await cursor.fetchone()
            assert row is not None
            return int(row["generation"])

        return await self._database.run(operation)

    async def confirm(self, tenant: str, notification_id: str, generation: int) -> None:
        """The request of this generation is in Kafka. Raises UnavailableError; then the next resend repeats it."""

        async def operation(connection: Connection) -> None:
            await connection.execute(
                "UPDATE resends SET confirmed = true WHERE tenant = %s AND notification_id = %s AND generation = %s",
                (tenant, notification_id, generation),
            )

        await self._database.run(operation)
