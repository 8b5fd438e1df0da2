"""Users, preferences, templates and suppressions: reads, and writes that share a transaction with their outbox rows.

Every write first locks the row of its entity, so the outbox rows of one key are in the order of the commits.
May import psycopg. What never enters here: checks of what a caller wrote (producers/http), publishing (the relay).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from psycopg.types.json import Json

from producers.reference.database import Connection, Database
from producers.reference.records import OutboxRow, profile_row, suppression_row, template_rows
from runtime import ids
from runtime.clock import Clock, system_clock

MAX_LIST = 1_000
Row = dict[str, Any]


class ExistsError(Exception):
    """The id is taken."""


class NotFoundError(Exception):
    """There is no such thing of this tenant."""


class Written:
    """A row as it is now, and the outbox row that must be published before other processes see it."""

    __slots__ = ("created", "outbox_id", "row")

    def __init__(self, row: Row, outbox_id: int | None, created: bool = True) -> None:
        self.row, self.outbox_id, self.created = row, outbox_id, created


async def _put_outbox(connection: Connection, rows: Iterable[OutboxRow]) -> int | None:
    last = None
    for row in rows:
        cursor = await connection.execute(
            "INSERT INTO outbox (topic, key, value) VALUES (%s, %s, %s) RETURNING id", row
        )
        last = await cursor.fetchone()
    return last["id"] if last else None


_USER = "tenant, user_id, name, email, phone, locale, time_zone, devices, version, created_at, updated_at"
_VERSION = "v.tenant, v.template_id, v.version, v.category, v.channels, v.locales, v.variables, v.created_at"


class ReferenceStore:
    """Reference data of all tenants; every method takes the tenant of the caller's key."""

    def __init__(self, database: Database, clock: Clock = system_clock) -> None:
        self._database, self._clock = database, clock

    # -- users --------------------------------------------------------------------------------------------------------

    async def create_user(self, tenant: str, user: Mapping[str, Any]) -> Written:
        """Raises ExistsError."""
        now = self._clock()
        values = {**user, "tenant": tenant, "devices": Json(user["devices"]), "now": now}

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "INSERT INTO users (tenant, user_id, name, email, phone, locale, time_zone, devices, created_at,"
                    " updated_at) VALUES (%(tenant)s, %(id)s, %(name)s, %(email)s, %(phone)s, %(locale)s, %(time_zone)s,"
                    f" %(devices)s, %(now)s, %(now)s) ON CONFLICT DO NOTHING RETURNING {_USER}",
                    values,
                )
                row = await cursor.fetchone()
                if row is None:
                    raise ExistsError
                return Written(row, await _put_outbox(connection, [profile_row(row, None)]))

        return await self._database.run(operation)

    async def replace_user(self, tenant: str, user_id: str, user: Mapping[str, Any]) -> Written:
        """Raises NotFoundError. Preferences stay."""
        values = {**user, "id": user_id, "tenant": tenant, "devices": Json(user["devices"]), "now": self._clock()}

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "UPDATE users SET name = %(name)s, email = %(email)s, phone = %(phone)s, locale = %(locale)s,"
                    " time_zone = %(time_zone)s, devices = %(devices)s, version = version + 1, updated_at = %(now)s"
                    f" WHERE tenant = %(tenant)s AND user_id = %(id)s RETURNING {_USER}",
                    values,
                )
                row = await cursor.fetchone()
                if row is None:
                    raise NotFoundError
                preferences = await _preferences(connection, tenant, user_id)
                return Written(row, await _put_outbox(connection, [profile_row(row, preferences)]), created=False)

        return await self._database.run(operation)

    async def get_user(self, tenant: str, user_id: str) -> Row:
        """Raises NotFoundError."""

        async def operation(connection: Connection) -> Row:
            cursor = await connection.execute(
                f"SELECT {_USER} FROM users WHERE tenant = %s AND user_id = %s", (tenant, user_id)
            )
            return _found(await cursor.fetchone())

        return await self._database.run(operation)

    async def replace_preferences(self, tenant: str, user_id: str, preferences: Mapping[str, Any]) -> Written:
        """Raises NotFoundError when there is no such user."""
        now = self._clock()

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "UPDATE users SET version = version + 1, updated_at = %s WHERE tenant = %s AND user_id = %s"
                    f" RETURNING {_USER}",
                    (now, tenant, user_id),
                )
                user = _found(await cursor.fetchone())
                cursor = await connection.execute(
                    "INSERT INTO preferences (tenant, user_id, channels, categories, updated_at)"
                    " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (tenant, user_id) DO UPDATE SET"
                    " channels = EXCLUDED.channels, categories = EXCLUDED.categories, updated_at = EXCLUDED.updated_at"
                    " RETURNING channels, categories",
                    (tenant, user_id, Json(preferences["channels"]), Json(preferences["categories"]), now),
                )
                row = _found(await cursor.fetchone())
                return Written(row, await _put_outbox(connection, [profile_row(user, row)]), created=False)

        return await self._database.run(operation)

    async def get_preferences(self, tenant: str, user_id: str) -> Row:
        """Channels and categories, {} where nothing was said. Raises NotFoundError when there is no such user."""

        async def operation(connection: Connection) -> Row:
            cursor = await connection.execute(
                "SELECT p.channels, p.categories FROM users u LEFT JOIN preferences p USING (tenant, user_id)"
                " WHERE u.tenant = %s AND u.user_id = %s",
                (tenant, user_id),
            )
            row = _found(await cursor.fetchone())
            return {"channels": row["channels"] or {}, "categories": row["categories"] or {}}

        return await self._database.run(operation)

    # -- templates ----------------------------------------------------------------------------------------------------

    async def create_template(
        self, tenant: str, template_id: str, template: Mapping[str, Any], *, publish: bool
    ) -> Written:
        """Version 1. Raises ExistsError."""
        now = self._clock()

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "INSERT INTO templates (tenant, template_id, latest_version, published_version, updated_at)"
                    " VALUES (%s, %s, 1, %s, %s) ON CONFLICT DO NOTHING RETURNING template_id",
                    (tenant, template_id, 1 if publish else None, now),
                )
                if await cursor.fetchone() is None:
                    raise ExistsError
                return await _add_version(connection, tenant, template_id, 1, template, publish, now)

        return await self._database.run(operation)

    async def add_template_version(
        self, tenant: str, template_id: str, template: Mapping[str, Any], *, publish: bool
    ) -> Written:
        """The next version. Raises NotFoundError."""
        now = self._clock()

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "UPDATE templates SET latest_version = latest_version + 1, updated_at = %(now)s,"
                    " published_version = CASE WHEN %(publish)s THEN latest_version + 1 ELSE published_version END"
                    " WHERE tenant = %(tenant)s AND template_id = %(id)s RETURNING latest_version",
                    {"now": now, "publish": publish, "tenant": tenant, "id": template_id},
                )
                version = _found(await cursor.fetchone())["latest_version"]
                return await _add_version(connection, tenant, template_id, version, template, publish, now)

        return await self._database.run(operation)

    async def publish_template(self, tenant: str, template_id: str, version: int) -> Written:
        """Make a version, also an older one, the published one. Raises NotFoundError."""
        now = self._clock()

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                await connection.execute(
                    "UPDATE templates SET published_version = %s, updated_at = %s"
                    " WHERE tenant = %s AND template_id = %s AND %s <= latest_version",
                    (version, now, tenant, template_id, version),
                )
                row = await _version(connection, tenant, template_id, version)
                rows = template_rows(row, new=False, published=True, updated_at=now)
                return Written({**row, "updated_at": now}, await _put_outbox(connection, rows), created=False)

        return await self._database.run(operation)

    async def get_template(self, tenant: str, template_id: str, version: int | None = None) -> Row:
        """A version, or else the published one, or else the latest. Raises NotFoundError."""
        return await self._database.run(lambda connection: _version(connection, tenant, template_id, version))

    async def find_template(self, tenant: str, template_id: str, version: int | None) -> Row | None:
        """A version, or the published one; None when there is none: what a notification may name."""
        try:
            row = await self.get_template(tenant, template_id, version)
        except NotFoundError:
            return None
        return row if version is not None or row["published"] else None

    # -- suppressions -------------------------------------------------------------------------------------------------

    async def suppress(self, tenant: str, channel: str, address: str, reason: str) -> Written:
        """Never send to this address again; an address that is suppressed already takes the new reason."""
        now, address_hash = self._clock(), ids.address_hash(channel, address)

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "INSERT INTO suppressions (tenant, channel, address_hash, suppression_id, address, reason, created_at)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (tenant, channel, address_hash) DO UPDATE"
                    " SET reason = EXCLUDED.reason, expires_at = NULL RETURNING *, xmax = 0 AS created",
                    (tenant, channel, address_hash, uuid4(), address, reason, now),
                )
                row = _found(await cursor.fetchone())
                return Written(row, await _put_outbox(connection, [suppression_row(row)]), created=row["created"])

        return await self._database.run(operation)

    async def list_suppressions(self, tenant: str) -> list[Row]:
        """The newest first, at most MAX_LIST."""

        async def operation(connection: Connection) -> list[Row]:
            cursor = await connection.execute(
                "SELECT * FROM suppressions WHERE tenant = %s ORDER BY created_at DESC, suppression_id LIMIT %s",
                (tenant, MAX_LIST),
            )
            return await cursor.fetchall()

        return await self._database.run(operation)

    # -- the outbox ---------------------------------------------------------------------------------------------------

    async def unpublished(self, outbox_ids: list[int]) -> set[int]:
        """Those of the outbox rows that the relay has not published yet."""

        async def operation(connection: Connection) -> set[int]:
            cursor = await connection.execute("SELECT id FROM outbox WHERE id = ANY(%s)", (outbox_ids,))
            return {row["id"] for row in await cursor.fetchall()}

        return await self._database.run(operation)


def _found(row: Row | None) -> Row:
    if row is None:
        raise NotFoundError
    return row


async def _preferences(connection: Connection, tenant: str, user_id: str) -> Row | None:
    cursor = await connection.execute(
        "SELECT channels, categories FROM preferences WHERE tenant = %s AND user_id = %s", (tenant, user_id)
    )
    return await cursor.fetchone()


async def _add_version(
    connection: Connection, tenant: str, template_id: str, version: int, template: Mapping[str, Any], publish: bool,
    now: int,
) -> Written:  # fmt: skip
    row = {
        "tenant": tenant, "template_id": template_id, "version": version, "category": template["category"],
        "channels": template["channels"], "locales": template["locales"], "variables": template["variables"],
    }  # fmt: skip
    await connection.execute(
        "INSERT INTO template_versions (tenant, template_id, version, category, channels, locales, variables, created_at)"
        " VALUES (%(tenant)s, %(template_id)s, %(version)s, %(category)s, %(channels)s, %(locales)s, %(variables)s,"
        " %(now)s)",
        {**row, "channels": Json(row["channels"]), "locales": Json(row["locales"]), "now": now},
    )
    outbox_id = await _put_outbox(connection, template_rows(row, new=True, published=publish, updated_at=now))
    return Written({**row, "published": publish, "updated_at": now}, outbox_id)


async def _version(connection: Connection, tenant: str, template_id: str, version: int | None) -> Row:
    cursor = await connection.execute(
        f"SELECT {_VERSION}, t.updated_at, v.version IS NOT DISTINCT FROM t.published_version AS published"
        " FROM templates t JOIN template_versions v USING (tenant, template_id)"
        " WHERE t.tenant = %s AND t.template_id = %s"
        " AND v.version = COALESCE(%s::integer, t.published_version, t.latest_version)",
        (tenant, template_id, version),
    )
    return _found(await cursor.fetchone())
