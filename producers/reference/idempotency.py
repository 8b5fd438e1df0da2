"""Idempotency keys: which id a caller's key has, decided by PostgreSQL, many keys per round trip.

May import psycopg. Never: what is published under the id.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from producers.reference.database import Connection, Database
from runtime.clock import Monotonic, system_monotonic
from runtime.errors import UnavailableError
from runtime.logs import get_logger

log = get_logger("idempotency")
_LATE = "PostgreSQL does not answer; try again in a second"
MAX_BATCH = 500
WRITERS = 2
"""Batches in flight at once: one waits for the disk while the other fills."""
MAX_UNCONFIRMED = 100_000
CONFIRM_DELAY_S = 0.05
MAX_QUEUED_S = 1.0
"""A reservation that waited longer for its batch is refused: with the database's own limit a caller waits for five seconds at most."""


class KeyReservation(NamedTuple):
    """What the caller wants to be true of its key."""

    tenant: str
    key: str
    notification_id: str
    body_hash: bytes
    accepted_at: int


class KeyRecord(NamedTuple):
    """What is true of a key. `won`: this reservation made it so. Not `confirmed`: its record may never have reached Kafka."""

    won: bool
    notification_id: str
    body_hash: bytes
    accepted_at: int
    confirmed: bool


class _Waiting(NamedTuple):
    """A reservation that waits for its batch, since a moment of the monotonic clock."""

    reservation: KeyReservation
    answer: asyncio.Future[KeyRecord]
    since: float


class IdempotencyKeys:
    """Reservations and confirmations in micro-batches."""

    def __init__(self, database: Database, monotonic: Monotonic = system_monotonic) -> None:
        self._database = database
        self._monotonic = monotonic
        self._waiting: list[_Waiting] = []
        self._confirmed: list[tuple[str, str]] = []
        self._confirmed_here: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to write; call in the event loop."""
        self._tasks = [asyncio.create_task(self._write()) for _ in range(WRITERS)]
        self._tasks.append(asyncio.create_task(self._confirm()))

    async def close(self) -> None:
        """Write the confirmations that are left, and stop."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        await self._flush_confirmed()

    async def reserve(self, reservation: KeyReservation) -> KeyRecord:
        """Reserve a key, or return who has it. Raises UnavailableError when PostgreSQL does not say in time."""
        if not self._database.available:
            raise UnavailableError(_LATE)
        answer: asyncio.Future[KeyRecord] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(reservation, answer, self._monotonic()))
        self._work.set()
        return await answer

    async def find(self, tenant: str, key: str) -> KeyRecord | None:
        """Who has a key, without reserving it. Raises UnavailableError."""
        key_records = await self._database.run(lambda connection: _key_records(connection, [(tenant, key)]))
        return key_records.get((tenant, key))

    def confirm(self, tenant: str, key: str) -> None:
        """The record of this key is in Kafka. Written soon; when that is lost, a retry only publishes the same id again."""
        if len(self._confirmed) < MAX_UNCONFIRMED:
            self._confirmed.append((tenant, key))
        # A retry may come before that is written.
        self._confirmed_here[tenant, key] = None
        while len(self._confirmed_here) > MAX_UNCONFIRMED:
            self._confirmed_here.popitem(last=False)

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            batch = self._waiting[:MAX_BATCH]
            self._waiting = self._waiting[MAX_BATCH:]
            if not self._waiting:
                self._work.clear()
            late = self._monotonic() - MAX_QUEUED_S
            _refuse([it for it in batch if it.since < late], _LATE)
            batch = [it for it in batch if not it.answer.done()]
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        try:
            key_records = await self._database.run(
                lambda connection: _reserve(connection, [it.reservation for it in batch])
            )
        except UnavailableError as exc:
            _refuse(batch, str(exc))
            return
        except Exception as exc:
            log.exception("key reservations failed")
            _refuse(batch, f"the keys could not be stored ({type(exc).__name__})")
            return
        for (reservation, answer, _), key_record in zip(batch, key_records, strict=True):
            if not answer.done():
                known = not key_record.won and (reservation.tenant, reservation.key) in self._confirmed_here
                answer.set_result(key_record._replace(confirmed=True) if known else key_record)

    async def _confirm(self) -> None:
        while True:
            await asyncio.sleep(CONFIRM_DELAY_S)
            await self._flush_confirmed()

    async def _flush_confirmed(self) -> None:
        if not self._confirmed or not self._database.available:
            return
        keys = self._confirmed
        self._confirmed = []
        try:
            await self._database.run(lambda connection: _mark_confirmed(connection, sorted(keys)))
        except UnavailableError:
            return


def _refuse(batch: Sequence[_Waiting], why: str) -> None:
    for _, answer, _ in batch:
        if not answer.done():
            answer.set_exception(UnavailableError(why))


async def _reserve(connection: Connection, reservations: Sequence[KeyReservation]) -> list[KeyRecord]:
    """One key record per reservation, in order. Of two reservations of one key in a batch the first may win."""
    first: dict[tuple[str, str], KeyReservation] = {}
    for reservation in reservations:
        first.setdefault((reservation.tenant, reservation.key), reservation)
    # In one order everywhere: two processes that insert the same keys cannot wait for each other.
    rows = sorted(first.values(), key=lambda reservation: (reservation.tenant, reservation.key))
    cursor = await connection.execute(
        "INSERT INTO idempotency_keys (tenant, key, notification_id, body_hash, accepted_at)"
        " SELECT * FROM unnest(%s::text[], %s::text[], %s::uuid[], %s::bytea[], %s::bigint[])"
        " ON CONFLICT DO NOTHING RETURNING tenant, key",
        [list(column) for column in zip(*rows, strict=True)],
    )
    won = {(row["tenant"], row["key"]) for row in await cursor.fetchall()}
    lost = [key for key in first if key not in won]
    taken = await _key_records(connection, lost) if lost else {}
    key_records = []
    for reservation in reservations:
        key = (reservation.tenant, reservation.key)
        if key in taken:
            key_records.append(taken[key])
        else:
            winner = first[key]
            key_records.append(
                KeyRecord(
                    winner is reservation, winner.notification_id, winner.body_hash, winner.accepted_at, confirmed=False
                )
            )
    return key_records


async def _key_records(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], KeyRecord]:
    tenants, names = [list(column) for column in zip(*keys, strict=True)]
    cursor = await connection.execute(
        "SELECT i.* FROM idempotency_keys i JOIN unnest(%s::text[], %s::text[]) AS k (tenant, key) USING (tenant, key)",
        (tenants, names),
    )
    return {
        (row["tenant"], row["key"]): KeyRecord(
            False, str(row["notification_id"]), bytes(row["body_hash"]), row["accepted_at"], row["confirmed"]
        )
        for row in await cursor.fetchall()
    }


async def _mark_confirmed(connection: Connection, keys: Sequence[tuple[str, str]]) -> None:
    tenants, names = [list(column) for column in zip(*keys, strict=True)]
    await connection.execute(
        "UPDATE idempotency_keys i SET confirmed = true FROM unnest(%s::text[], %s::text[]) AS k (tenant, key)"
        " WHERE i.tenant = k.tenant AND i.key = k.key AND NOT i.confirmed",
        (tenants, names),
    )
