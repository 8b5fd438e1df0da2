"""API keys: `hg_<id>_<secret>`, shown once, stored as HMAC-SHA-256 under the pepper; and who a key belongs to.

A known key is checked again every 0.8 s, so a revocation takes effect within a second. While PostgreSQL is down known keys
stay valid: no key can be revoked then, and ingest does not depend on PostgreSQL.
May import psycopg. Never: a secret in a log, a line of HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import psycopg
from pydantic import SecretStr

from producers.reference.database import Connection, Database
from producers.reference.schema import CONNECT_TIMEOUT_S, WRITABLE, unavailable
from runtime.clock import system_clock, system_monotonic
from runtime.errors import SettingsError, UnavailableError
from runtime.status import rfc3339
from schemas.identity import check_tenant

FRESH_S = 0.8
MAX_KNOWN = 100_000
_FORM = re.compile(r"hg_([a-z2-7]{16})_([A-Za-z0-9_-]{43})")


class Caller(NamedTuple):
    """Whose key it is."""

    tenant: str
    key_id: str


def parse_key(text: str) -> tuple[str, str] | None:
    """(id, secret), None when it does not have the form of a key."""
    match = _FORM.fullmatch(text)
    return (match[1], match[2]) if match else None


def hash_secret(pepper: SecretStr, secret: str) -> bytes:
    """What is stored of a secret. It has 256 random bits, so one HMAC is enough. Raises SettingsError without a pepper."""
    if not pepper.get_secret_value():
        raise SettingsError("HELIOGRAPH_API__KEY_PEPPER is not set: give it 32 random characters, the same everywhere")
    return hmac.digest(pepper.get_secret_value().encode(), secret.encode(), hashlib.sha256)


def create_api_key(dsn: str, tenant: str, name: str, *, pepper: SecretStr) -> str:
    """Make a key and return it: it cannot be read again. Raises UnavailableError; ValueError for a wrong tenant name."""
    key_id = base64.b32encode(os.urandom(10)).decode().lower()
    secret = secrets.token_urlsafe(32)
    stored = hash_secret(pepper, secret)
    try:
        with psycopg.connect(dsn, connect_timeout=CONNECT_TIMEOUT_S, target_session_attrs=WRITABLE) as connection:
            connection.execute(
                "INSERT INTO api_keys (tenant, key_id, name, secret_hash, created_at) VALUES (%s, %s, %s, %s, %s)",
                (check_tenant(tenant), key_id, name, stored, system_clock()),
            )
    except psycopg.OperationalError as exc:
        raise unavailable(exc) from exc
    return f"hg_{key_id}_{secret}"


class KeyRow(NamedTuple):
    """What is known of a key; times are RFC 3339, in UTC."""

    id: str
    tenant: str
    name: str
    created_at: str
    revoked_at: str | None


def list_api_keys(dsn: str, tenant: str | None = None) -> list[KeyRow]:
    """Every key, newest first, revoked ones too; of one tenant where it is named. Raises UnavailableError."""
    try:
        with psycopg.connect(dsn, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            rows = connection.execute(
                "SELECT key_id, tenant, name, created_at, revoked_at FROM api_keys"
                " WHERE tenant = %(tenant)s OR %(tenant)s::text IS NULL ORDER BY created_at DESC, key_id",
                {"tenant": tenant},
            ).fetchall()
    except psycopg.OperationalError as exc:
        raise unavailable(exc) from exc
    return [
        KeyRow(id_, whose, name, rfc3339(made), rfc3339(gone) if gone else None)
        for id_, whose, name, made, gone in rows
    ]


def revoke_api_key(dsn: str, key_id: str) -> bool:
    """Revoke a key by its id; False when there is none to revoke. Raises UnavailableError."""
    try:
        with psycopg.connect(dsn, connect_timeout=CONNECT_TIMEOUT_S, target_session_attrs=WRITABLE) as connection:
            cursor = connection.execute(
                "UPDATE api_keys SET revoked_at = %s WHERE key_id = %s AND revoked_at IS NULL", (system_clock(), key_id)
            )
            return cursor.rowcount == 1
    except psycopg.OperationalError as exc:
        raise unavailable(exc) from exc


def keep_or_create_key(dsn: str, tenant: str, known: str | None, *, pepper: SecretStr) -> str:
    """`known` when it is a valid key of the tenant, else a new key named `local`. Raises UnavailableError."""
    parsed = parse_key(known) if known else None
    if known and parsed:
        try:
            with psycopg.connect(dsn, connect_timeout=CONNECT_TIMEOUT_S, target_session_attrs=WRITABLE) as connection:
                row = connection.execute(
                    "SELECT secret_hash FROM api_keys WHERE tenant = %s AND key_id = %s AND revoked_at IS NULL",
                    (tenant, parsed[0]),
                ).fetchone()
        except psycopg.OperationalError as exc:
            raise unavailable(exc) from exc
        if row and hmac.compare_digest(bytes(row[0]), hash_secret(pepper, parsed[1])):
            return known
    return create_api_key(dsn, tenant, "local", pepper=pepper)


def ensure_local_key(dsn: str, tenant: str, state_file: Path, *, pepper: SecretStr) -> str:
    """The key in `state_file`, made when there is no valid one; the file is readable by its owner only."""
    known = state_file.read_text("ascii").strip() if state_file.exists() else None
    key = keep_or_create_key(dsn, tenant, known, pepper=pepper)
    if key != known:
        new = state_file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(key + "\n", "ascii")
        new.replace(state_file)
    return key


class _Known(NamedTuple):
    tenant: str | None
    """None: there is no such key, or it is revoked."""
    secret_hash: bytes
    checked_at: float


class Keys:
    """Finds the caller of a key, mostly without asking PostgreSQL."""

    def __init__(self, database: Database, pepper: SecretStr) -> None:
        hash_secret(pepper, "")
        self._database = database
        self._pepper = pepper
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._asking: dict[str, asyncio.Task[_Known]] = {}

    async def load(self) -> None:
        """Learn the keys there are, so that all of them work when PostgreSQL goes down."""

        async def operation(connection: Connection) -> list[dict[str, object]]:
            cursor = await connection.execute(
                "SELECT tenant, key_id, secret_hash FROM api_keys WHERE revoked_at IS NULL ORDER BY created_at DESC LIMIT %s",
                (MAX_KNOWN,),
            )
            return await cursor.fetchall()

        for row in await self._database.run(operation):
            self._known[str(row["key_id"])] = _Known(str(row["tenant"]), bytes(row["secret_hash"]), 0.0)  # type: ignore[call-overload]

    async def find(self, text: str) -> Caller | None:
        """The caller, None for a key that is not valid. Raises UnavailableError for an unknown key without PostgreSQL."""
        parsed = parse_key(text)
        if parsed is None:
            return None
        key_id, secret = parsed
        known = self._known.get(key_id)
        if known is None or system_monotonic() - known.checked_at > FRESH_S:
            try:
                known = await self._ask(key_id)
            except UnavailableError:
                if known is None or known.tenant is None:
                    raise
        if known.tenant is None or not hmac.compare_digest(known.secret_hash, hash_secret(self._pepper, secret)):
            return None
        return Caller(known.tenant, key_id)

    async def revoked_of(self, key_ids: Collection[str]) -> set[str]:
        """Those of these keys that are not valid any more; none while PostgreSQL does not say."""

        async def operation(connection: Connection) -> list[dict[str, object]]:
            cursor = await connection.execute(
                "SELECT key_id FROM api_keys WHERE key_id = ANY(%s) AND revoked_at IS NULL", (list(key_ids),)
            )
            return await cursor.fetchall()

        try:
            rows = await self._database.run(operation)
        except UnavailableError:
            return set()
        return set(key_ids) - {str(row["key_id"]) for row in rows}

    async def _ask(self, key_id: str) -> _Known:
        task = self._asking.get(key_id)
        if task is None:
            task = self._asking[key_id] = asyncio.ensure_future(self._read(key_id))
            task.add_done_callback(lambda _: self._asking.pop(key_id, None))
        return await asyncio.shield(task)

    async def _read(self, key_id: str) -> _Known:
        async def operation(connection: Connection) -> dict[str, object] | None:
            cursor = await connection.execute(
                "SELECT tenant, secret_hash FROM api_keys WHERE key_id = %s AND revoked_at IS NULL", (key_id,)
            )
            return await cursor.fetchone()

        row = await self._database.run(operation)
        if row is None:
            known = _Known(None, b"", system_monotonic())
        else:
            known = _Known(str(row["tenant"]), bytes(row["secret_hash"]), system_monotonic())  # type: ignore[call-overload]
        self._known.pop(key_id, None)
        while len(self._known) >= MAX_KNOWN:  # ids are the caller's to invent
            self._known.popitem(last=False)
        self._known[key_id] = known
        return known
