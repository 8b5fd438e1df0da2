"""Which generation a resend has, decided by PostgreSQL.

May import psycopg. What never enters here: the request that is sent again.
"""

from __future__ import annotations

from producers.reference.database import Connection, Database
from runtime.clock import Clock, system_clock


class Resends:
    """A counter per notification that moves on only after its last value reached Kafka."""

    def __init__(self, database: Database, clock: Clock = system_clock) -> None:
        self._database, self._clock = database, clock

    async def claim(self, tenant: str, notification_id: str, above: int) -> int:
        """The generation to publish, greater than `above`; that of the last claim while it is not confirmed.

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
