"""Users, preferences, templates and suppressions: reads, and writes that share a transaction with their outbox rows.

Every write first locks the row of its entity, so the outbox rows of one key are in the order of the commits.
May import psycopg. Never: checks of what a caller wrote (api), publishing (the relay).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, LiteralString, NamedTuple
from uuid import UUID, uuid4

from psycopg.types.json import Json

from producers.reference.database import Connection, Database
from producers.reference.records import OutboxRow, profile_row, suppression_row, template_rows
from runtime import ids
from runtime.clock import Clock, system_clock
from runtime.subscriptions import address_of
from schemas.channels import CHANNEL_OF_PLATFORM, ROWS
from schemas.topics import RECIPIENTS, SUPPRESSIONS

Row = dict[str, Any]


class ExistsError(Exception):
    """The id is taken."""


class NotFoundError(Exception):
    """The tenant has no such entity."""


class Listed(NamedTuple):
    """Rows of a page, in order, at least one where there is one; `more` when others follow."""

    rows: list[Row]
    more: bool


class NewSuppression(NamedTuple):
    """An address in its normal form, or its fingerprint alone, that must not be sent to; `expires_at` in ms, None: never."""

    channel: str
    address: str | None
    reason: str
    expires_at: int | None = None
    address_hash: str | None = None

    @property
    def fingerprint(self) -> str:
        """What is compared."""
        return self.address_hash or ids.address_hash(self.channel, self.address or "")


class Bounced(NamedTuple):
    """An address that its provider reported as invalid; `is_address` recognises it by its fingerprint."""

    tenant: str
    channel: str
    recipient: str
    is_address: Callable[[str], bool]
    reason: str
    source: str
    occurred_at: int


class Written:
    """A row as it is now, and the outbox row that must be published before other processes see it."""

    __slots__ = ("created", "outbox_id", "row")

    def __init__(self, row: Row, outbox_id: int | None, created: bool = True) -> None:
        self.row, self.outbox_id, self.created = row, outbox_id, created


async def put_outbox(connection: Connection, rows: Iterable[OutboxRow]) -> int | None:
    """Write what the relay is to publish, in the transaction of the change; the last row's id."""
    last = None
    for row in rows:
        cursor = await connection.execute(
            "INSERT INTO outbox (topic, key, value) VALUES (%s, %s, %s) RETURNING id", row
        )
        last = await cursor.fetchone()
    return last["id"] if last else None


async def _put_outbox_rows(connection: Connection, rows: Sequence[OutboxRow]) -> int | None:
    """Many at once."""
    cursor = await connection.execute(
        "INSERT INTO outbox (topic, key, value) SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[]) RETURNING id",
        [list(column) for column in zip(*rows, strict=True)],
    )
    return max((row["id"] for row in await cursor.fetchall()), default=None)


MAX_PAGE_BYTES = 1 << 20
"""A page ends with the row that passes this: its JSON is read and written in one turn of the loop."""

_USER = "tenant, user_id, name, email, phone, locale, time_zone, devices, version, created_at, updated_at"
_USER_OF_U = "user_id, name, email, phone, locale, time_zone, devices, u.created_at, u.updated_at"
_VERSION = "v.tenant, v.template_id, v.version, v.category, v.channels, v.locales, v.variables, v.written, v.created_at"

_LISTED_TEMPLATE: LiteralString = (
    "SELECT t.template_id, t.latest_version, t.published_version, t.updated_at, v.category"
    " FROM templates t JOIN template_versions v ON v.tenant = t.tenant AND v.template_id = t.template_id"
    " AND v.version = COALESCE(t.published_version, t.latest_version) WHERE t.tenant = %s"
)

_REPLACE_USER = (
    "UPDATE users SET name = %(name)s, email = %(email)s, phone = %(phone)s, locale = %(locale)s,"
    " time_zone = %(time_zone)s, devices = %(devices)s, version = version + 1, updated_at = %(now)s,"
    # a token that stays keeps its time
    " registered = (SELECT COALESCE(json_object_agg(f, COALESCE((registered->>f)::bigint, %(now)s::bigint)), '{}'::json)"
    " FROM unnest(%(fingerprints)s::text[]) AS f)"
    f" WHERE tenant = %(tenant)s AND user_id = %(id)s RETURNING {_USER}"
)


class ReferenceStore:
    """Reference data of all tenants; every method takes the tenant of the caller's key."""

    def __init__(self, database: Database, clock: Clock = system_clock) -> None:
        self._database, self._clock = database, clock

    # -- users --------------------------------------------------------------------------------------------------------

    async def create_user(self, tenant: str, user: Mapping[str, Any]) -> Written:
        """Raises ExistsError."""
        now = self._clock()
        registered = dict.fromkeys(_fingerprints(user["devices"]), now)
        values = {
            **user,
            "tenant": tenant,
            "devices": Json(user["devices"]),
            "registered": Json(registered),
            "now": now,
        }

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "INSERT INTO users (tenant, user_id, name, email, phone, locale, time_zone, devices, registered,"
                    " created_at, updated_at) VALUES (%(tenant)s, %(id)s, %(name)s, %(email)s, %(phone)s, %(locale)s, %(time_zone)s,"
                    f" %(devices)s, %(registered)s, %(now)s, %(now)s) ON CONFLICT DO NOTHING RETURNING {_USER}",
                    values,
                )
                row = await cursor.fetchone()
                if row is None:
                    raise ExistsError
                return Written(row, await put_outbox(connection, [profile_row(row, None)]))

        return await self._database.run(operation)

    async def replace_user(self, tenant: str, user_id: str, user: Mapping[str, Any]) -> Written:
        """Raises NotFoundError. Preferences stay."""
        values = _replacement(tenant, user_id, user, self._clock())

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                row = _found(await (await connection.execute(_REPLACE_USER, values)).fetchone())
                preferences = await _preferences(connection, tenant, user_id)
                return Written(row, await put_outbox(connection, [profile_row(row, preferences)]), created=False)

        return await self._database.run(operation)

    async def change_user(self, tenant: str, user_id: str, change: Callable[[Row], Mapping[str, Any]]) -> Written:
        """Replace a user by `change` of its current value, in one transaction. Raises NotFoundError, and what `change` does."""
        now = self._clock()

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    f"SELECT {_USER} FROM users WHERE tenant = %s AND user_id = %s FOR UPDATE", (tenant, user_id)
                )
                user = change(_found(await cursor.fetchone()))
                values = _replacement(tenant, user_id, user, now)
                row = _found(await (await connection.execute(_REPLACE_USER, values)).fetchone())
                preferences = await _preferences(connection, tenant, user_id)
                return Written(row, await put_outbox(connection, [profile_row(row, preferences)]), created=False)

        return await self._database.run(operation)

    async def drop_devices(self, tenant: str, user_id: str, is_dead: Callable[[str, int | None], bool]) -> int:
        """Remove the devices of which `is_dead(address, registered at)` holds; how many those were."""

        async def operation(connection: Connection) -> int:
            async with connection.transaction():
                cursor = await connection.execute(
                    f"SELECT {_USER}, registered FROM users WHERE tenant = %s AND user_id = %s FOR UPDATE",
                    (tenant, user_id),
                )
                user = await cursor.fetchone()
                if user is None:
                    return 0
                times = user["registered"]
                kept = [
                    device
                    for device in user["devices"]
                    if not (address := address_of(device))
                    or not is_dead(address, times.get(_fingerprint(device, address)))
                ]
                if len(kept) == len(user["devices"]):
                    return 0
                values = _replacement(tenant, user_id, {**user, "devices": kept}, self._clock())
                row = _found(await (await connection.execute(_REPLACE_USER, values)).fetchone())
                await put_outbox(connection, [profile_row(row, await _preferences(connection, tenant, user_id))])
                return len(user["devices"]) - len(kept)

        return await self._database.run(operation)

    async def delete_user(self, tenant: str, user_id: str) -> Written:
        """With the preferences. Raises NotFoundError."""

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    f"DELETE FROM users WHERE tenant = %s AND user_id = %s RETURNING {_USER}", (tenant, user_id)
                )
                row = _found(await cursor.fetchone())
                tombstone = OutboxRow(RECIPIENTS, f"{tenant}:{user_id}", None)
                return Written(row, await put_outbox(connection, [tombstone]), created=False)

        return await self._database.run(operation)

    async def list_users(self, tenant: str, after: str, limit: int, prefix: str = "") -> Listed:
        """By id, those after `after` whose id begins with `prefix`: up to `limit`, and no more than MAX_PAGE_BYTES by and by."""
        return await self._page(
            f"SELECT {_USER}, row_number() OVER (ORDER BY user_id) AS nth, octet_length(devices::text) AS size FROM users"
            " WHERE tenant = %(tenant)s AND user_id > %(after)s AND starts_with(user_id, %(prefix)s)"
            " ORDER BY user_id LIMIT %(limit)s + 1",
            {"tenant": tenant, "after": after, "limit": limit, "prefix": prefix},
        )

    async def _page(self, query: LiteralString, values: Mapping[str, Any]) -> Listed:
        """Of the rows of a query, which have `nth` and `size`, as many as one turn of the loop can take."""
        rows = await self._rows(
            "SELECT * FROM (SELECT found.*, count(*) OVER () AS of, COALESCE(sum(size) OVER (ORDER BY nth ROWS BETWEEN"
            f" UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM ({query}) AS found) AS sized"
            " WHERE before < %(bytes)s AND nth <= %(limit)s ORDER BY nth",
            {**values, "bytes": MAX_PAGE_BYTES},
        )
        return Listed(rows, bool(rows) and rows[0]["of"] > len(rows))

    async def _rows(self, query: LiteralString, values: Sequence[Any] | Mapping[str, Any]) -> list[Row]:
        async def operation(connection: Connection) -> list[Row]:
            return await (await connection.execute(query, values)).fetchall()

        return await self._database.run(operation)

    async def get_user(self, tenant: str, user_id: str) -> Row:
        """Raises NotFoundError."""

        async def operation(connection: Connection) -> Row:
            cursor = await connection.execute(
                f"SELECT {_USER} FROM users WHERE tenant = %s AND user_id = %s", (tenant, user_id)
            )
            return _found(await cursor.fetchone())

        return await self._database.run(operation)

    async def find_users(self, tenant: str, user_ids: Sequence[str]) -> dict[str, Row]:
        """Those there are, by id, each with its `preferences` as `get_preferences` has them."""
        rows = await self._rows(
            f"SELECT {_USER_OF_U}, p.channels, p.categories FROM users u LEFT JOIN preferences p USING (tenant, user_id)"
            " WHERE tenant = %s AND user_id = ANY(%s)",
            (tenant, list(user_ids)),
        )
        return {
            row["user_id"]: {
                **row,
                "preferences": {name: row[name] or {} for name in ("channels", "categories")},
            }
            for row in rows
        }

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
                return Written(row, await put_outbox(connection, [profile_row(user, row)]), created=False)

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
        """The next version; without a category it has that of the published one, or else of the latest. Raises NotFoundError."""
        now = self._clock()

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "WITH before AS (SELECT COALESCE(published_version, latest_version) AS version FROM templates"
                    " WHERE tenant = %(tenant)s AND template_id = %(id)s FOR UPDATE)"
                    " UPDATE templates SET latest_version = latest_version + 1, updated_at = %(now)s,"
                    " published_version = CASE WHEN %(publish)s THEN latest_version + 1 ELSE published_version END"
                    " FROM before JOIN template_versions v ON v.tenant = %(tenant)s AND v.template_id = %(id)s"
                    " AND v.version = before.version"
                    " WHERE templates.tenant = %(tenant)s AND templates.template_id = %(id)s"
                    " RETURNING templates.latest_version, v.category",
                    {"now": now, "publish": publish, "tenant": tenant, "id": template_id},
                )
                before = _found(await cursor.fetchone())
                version = before["latest_version"]
                new = {**template, "category": template["category"] or before["category"]}
                return await _add_version(connection, tenant, template_id, version, new, publish, now)

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
                return Written({**row, "updated_at": now}, await put_outbox(connection, rows), created=False)

        return await self._database.run(operation)

    async def get_template(self, tenant: str, template_id: str, version: int | None = None) -> Row:
        """A version, or else the published one, or else the latest. Raises NotFoundError."""
        return await self._database.run(lambda connection: _version(connection, tenant, template_id, version))

    async def list_templates(self, tenant: str, after: str, limit: int) -> list[Row]:
        """By id, those after `after`, with the category of the published or else the latest version."""
        return await self._rows(
            f"{_LISTED_TEMPLATE} AND t.template_id > %s ORDER BY t.template_id LIMIT %s",
            (tenant, after, limit),
        )

    async def find_templates(self, tenant: str, template_ids: Sequence[str]) -> dict[str, Row]:
        """Those there are, by id, each as `list_templates` has it."""
        rows = await self._rows(f"{_LISTED_TEMPLATE} AND t.template_id = ANY(%s)", (tenant, list(template_ids)))
        return {row["template_id"]: row for row in rows}

    async def find_versions(
        self, tenant: str, wanted: Sequence[tuple[str, int | None]]
    ) -> dict[tuple[str, int | None], Row]:
        """Those there are, by (id, version); version None is the published one, or else the latest."""
        rows = await self._rows(
            f"SELECT {_VERSION}, w.version AS wanted, v.version IS NOT DISTINCT FROM t.published_version AS published"
            " FROM unnest(%s::text[], %s::integer[]) AS w (template_id, version)"
            " JOIN templates t ON t.tenant = %s AND t.template_id = w.template_id"
            " JOIN template_versions v ON v.tenant = t.tenant AND v.template_id = t.template_id"
            " AND v.version = COALESCE(w.version, t.published_version, t.latest_version)",
            ([one for one, _ in wanted], [version for _, version in wanted], tenant),
        )
        return {(row["template_id"], row["wanted"]): row for row in rows}

    async def list_versions(self, tenant: str, template_id: str, before: int, limit: int) -> Listed:
        """The newest first, those before `before`, as `list_users` does; none also when there is no such template."""
        return await self._page(
            f"SELECT {_VERSION}, v.version IS NOT DISTINCT FROM t.published_version AS published,"
            " row_number() OVER (ORDER BY v.version DESC) AS nth,"
            " octet_length(v.channels::text) + octet_length(v.locales::text) + COALESCE(octet_length(v.written::text), 0) AS size"
            " FROM templates t JOIN template_versions v USING (tenant, template_id)"
            " WHERE t.tenant = %(tenant)s AND t.template_id = %(id)s AND v.version < %(before)s"
            " ORDER BY v.version DESC LIMIT %(limit)s + 1",
            {"tenant": tenant, "id": template_id, "before": before, "limit": limit},
        )

    async def find_template(self, tenant: str, template_id: str, version: int | None) -> Row | None:
        """A version, or the published one; None when there is none: what a notification may name."""
        try:
            row = await self.get_template(tenant, template_id, version)
        except NotFoundError:
            return None
        return row if version is not None or row["published"] else None

    # -- suppressions -------------------------------------------------------------------------------------------------

    async def suppress(self, tenant: str, suppressions: Sequence[NewSuppression]) -> list[Written]:
        """Never send to these addresses until they expire; one that is suppressed already takes the new reason and time.

        All or none; the rows in the order given, each address once.
        """
        now = self._clock()
        # In one order everywhere: two calls about the same addresses cannot wait for each other.
        by_key = {(s.channel, s.fingerprint): s for s in suppressions}
        values = [
            (tenant, channel, address_hash, uuid4(), s.address, s.reason, s.expires_at, now)
            for (channel, address_hash), s in sorted(by_key.items())
        ]

        async def operation(connection: Connection) -> list[Written]:
            async with connection.transaction():
                cursor = await connection.execute(
                    "INSERT INTO suppressions (tenant, channel, address_hash, suppression_id, address, reason, expires_at,"
                    " created_at) SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::uuid[], %s::text[],"
                    " %s::text[], %s::bigint[], %s::bigint[]) ON CONFLICT (tenant, channel, address_hash) DO UPDATE"
                    " SET reason = EXCLUDED.reason, expires_at = EXCLUDED.expires_at, source = NULL,"
                    " address = COALESCE(suppressions.address, EXCLUDED.address) RETURNING *, xmax = 0 AS created",
                    [list(column) for column in zip(*values, strict=True)],
                )
                rows = await cursor.fetchall()
                outbox_id = await _put_outbox_rows(connection, [suppression_row(row) for row in rows])
                written = {(row["channel"], row["address_hash"]): row for row in rows}
                return [Written(written[key], outbox_id, created=written[key]["created"]) for key in by_key]

        return await self._database.run(operation) if values else []

    async def suppress_bounced(self, bounced: Bounced) -> str:
        """Suppress an address that bounced. Returns suppressed, known, lifted or unknown.

        An address that is already suppressed keeps its entry; one that an operator removed after the bounce stays removed.
        """
        tenant, channel = bounced.tenant, bounced.channel
        now = self._clock()

        async def operation(connection: Connection) -> str:
            async with connection.transaction():
                address, address_hash = await _bounced_address(connection, bounced)
                if address_hash is None or not bounced.is_address(address_hash):
                    return "unknown"
                await _lock_suppression(connection, tenant, channel, address_hash)
                cursor = await connection.execute(
                    "SELECT 1 AS found FROM lifted_suppressions"
                    " WHERE tenant = %s AND channel = %s AND address_hash = %s AND lifted_at >= %s",
                    (tenant, channel, address_hash, bounced.occurred_at),
                )
                if await cursor.fetchone() is not None:
                    return "lifted"
                cursor = await connection.execute(
                    "INSERT INTO suppressions AS s (tenant, channel, address_hash, suppression_id, address, reason, source,"
                    " created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (tenant, channel, address_hash)"
                    " DO UPDATE SET reason = EXCLUDED.reason, source = EXCLUDED.source, expires_at = NULL,"
                    " created_at = EXCLUDED.created_at WHERE s.expires_at <= EXCLUDED.created_at RETURNING *",
                    (tenant, channel, address_hash, uuid4(), address, bounced.reason, bounced.source, now),
                )
                row = await cursor.fetchone()
                if row is None:
                    return "known"
                await put_outbox(connection, [suppression_row(row)])
                return "suppressed"

        return await self._database.run(operation)

    async def list_suppressions(
        self,
        tenant: str,
        *,
        channel: str | None = None,
        reason: str | None = None,
        hashes: Sequence[str] | None = None,
        before: tuple[int, UUID] | None = None,
        limit: int,
    ) -> list[Row]:
        """The newest first, those before (created_at, id); of one channel, reason or address where that is given."""
        created_at, suppression_id = before or (None, None)
        return await self._rows(
            "SELECT * FROM suppressions WHERE tenant = %(tenant)s"
            " AND (%(channel)s::text IS NULL OR channel = %(channel)s) AND (%(reason)s::text IS NULL OR reason = %(reason)s)"
            " AND (%(hashes)s::text[] IS NULL OR address_hash = ANY(%(hashes)s))"
            " AND (%(created_at)s::bigint IS NULL"
            " OR (created_at, suppression_id) < (%(created_at)s::bigint, %(suppression_id)s::uuid))"
            " ORDER BY created_at DESC, suppression_id DESC LIMIT %(limit)s",
            {
                "tenant": tenant,
                "channel": channel,
                "reason": reason,
                "hashes": hashes if hashes is None else list(hashes),
                "created_at": created_at,
                "suppression_id": suppression_id,
                "limit": limit,
            },
        )

    async def unsuppress(self, tenant: str, suppression_id: UUID) -> Written:
        """The address may be sent to again, until it bounces again. Raises NotFoundError."""
        now = self._clock()

        async def operation(connection: Connection) -> Written:
            async with connection.transaction():
                cursor = await connection.execute(
                    "SELECT channel, address_hash FROM suppressions WHERE tenant = %s AND suppression_id = %s",
                    (tenant, suppression_id),
                )
                key = _found(await cursor.fetchone())
                await _lock_suppression(connection, tenant, key["channel"], key["address_hash"])
                cursor = await connection.execute(
                    "DELETE FROM suppressions WHERE tenant = %s AND suppression_id = %s RETURNING *",
                    (tenant, suppression_id),
                )
                row = _found(await cursor.fetchone())
                await connection.execute(
                    "INSERT INTO lifted_suppressions (tenant, channel, address_hash, lifted_at) VALUES (%s, %s, %s, %s)"
                    " ON CONFLICT (tenant, channel, address_hash) DO UPDATE SET lifted_at = EXCLUDED.lifted_at",
                    (tenant, row["channel"], row["address_hash"], now),
                )
                tombstone = OutboxRow(SUPPRESSIONS, f"{tenant}:{row['channel']}:{row['address_hash']}", None)
                return Written(row, await put_outbox(connection, [tombstone]), created=False)

        return await self._database.run(operation)

    # -- the outbox ---------------------------------------------------------------------------------------------------

    async def unpublished(self, outbox_ids: list[int]) -> set[int]:
        """Those of the outbox rows that the relay has not published yet."""

        async def operation(connection: Connection) -> set[int]:
            cursor = await connection.execute("SELECT id FROM outbox WHERE id = ANY(%s)", (outbox_ids,))
            return {row["id"] for row in await cursor.fetchall()}

        return await self._database.run(operation)


async def _bounced_address(connection: Connection, bounced: Bounced) -> tuple[str | None, str | None]:
    """(address, fingerprint): of a user what the profile says now, of a bare address the fingerprint alone."""
    if bounced.recipient.startswith("addr:"):
        return None, bounced.recipient.removeprefix("addr:")
    cursor = await connection.execute(
        f"SELECT {_USER} FROM users WHERE tenant = %s AND user_id = %s", (bounced.tenant, bounced.recipient)
    )
    user = await cursor.fetchone()
    address = user[ROWS[bounced.channel].stored_as] if user else None
    return address, ids.address_hash(bounced.channel, address) if address else None


async def _lock_suppression(connection: Connection, tenant: str, channel: str, address_hash: str) -> None:
    """One bounce or one lifting at a time: a lifting that is not committed yet is not to be missed."""
    key = f"{tenant}:{channel}:{address_hash}"
    await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (key,))


def _fingerprint(device: Mapping[str, Any], address: str) -> str:
    return ids.address_hash(CHANNEL_OF_PLATFORM[device["platform"]].name, address)


def _fingerprints(devices: Iterable[Mapping[str, Any]]) -> list[str]:
    return [_fingerprint(device, address) for device in devices if (address := address_of(device))]


def _replacement(tenant: str, user_id: str, user: Mapping[str, Any], now: int) -> Row:
    """The parameters of _REPLACE_USER."""
    devices = user["devices"]
    return {
        **user,
        "tenant": tenant,
        "id": user_id,
        "devices": Json(devices),
        "fingerprints": _fingerprints(devices),
        "now": now,
    }


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
    connection: Connection,
    tenant: str,
    template_id: str,
    version: int,
    template: Mapping[str, Any],
    publish: bool,
    now: int,
) -> Written:
    row = {
        "tenant": tenant,
        "template_id": template_id,
        "version": version,
        "category": template["category"],
        "channels": template["channels"],
        "locales": template["locales"],
        "variables": template["variables"],
        "written": template["written"],
    }
    await connection.execute(
        "INSERT INTO template_versions (tenant, template_id, version, category, channels, locales, variables, written,"
        " created_at) VALUES (%(tenant)s, %(template_id)s, %(version)s, %(category)s, %(channels)s, %(locales)s,"
        " %(variables)s, %(written)s, %(now)s)",
        {
            **row,
            "channels": Json(row["channels"]),
            "locales": Json(row["locales"]),
            "now": now,
            "written": Json(row["written"]) if row["written"] is not None else None,
        },
    )
    outbox_id = await put_outbox(connection, template_rows(row, new=True, published=publish, updated_at=now))
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
