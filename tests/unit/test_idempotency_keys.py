"""Reservations of idempotency keys: nobody waits long for a store that answers slowly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from producers.reference import idempotency
from producers.reference.database import Database
from producers.reference.idempotency import MAX_QUEUED_S, WRITERS, IdempotencyKeys, KeyRecord, KeyReservation
from runtime.errors import UnavailableError


class SlowDatabase:
    """Answers a batch when it is let go."""

    available = True

    def __init__(self) -> None:
        self.batches: list[list[KeyReservation]] = []
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.let_go = asyncio.Event()

    async def run(self, operation: Callable[[Any], Awaitable[Any]]) -> Any:
        result = await operation(self)
        await self.let_go.wait()
        return result


def reservation(number: int) -> KeyReservation:
    return KeyReservation("shop", f"k{number}", f"n{number}", b"hash", 1)


async def test_what_waited_too_long_for_its_batch_is_refused_and_what_came_later_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def reserve(database: SlowDatabase, batch: list[KeyReservation]) -> list[KeyRecord]:
        database.batches.append(batch)
        database.begun.put_nowait(None)
        return [KeyRecord(True, it.notification_id, it.body_hash, it.accepted_at, False) for it in batch]

    monkeypatch.setattr(idempotency, "_reserve", reserve)
    now, database = 0.0, SlowDatabase()
    keys = IdempotencyKeys(cast(Database, database), lambda: now)
    keys.start()
    under_way = []
    for number in range(WRITERS):
        under_way.append(asyncio.create_task(keys.reserve(reservation(number))))
        await database.begun.get()
    early = asyncio.create_task(keys.reserve(reservation(8)))
    await asyncio.sleep(0)
    now = MAX_QUEUED_S + 0.1
    late = asyncio.create_task(keys.reserve(reservation(9)))
    await asyncio.sleep(0)
    database.let_go.set()
    with pytest.raises(UnavailableError, match="try again"):
        await early
    assert (await late).notification_id == "n9"
    assert [(await task).notification_id for task in under_way] == [f"n{number}" for number in range(WRITERS)]
    assert reservation(8) not in [it for batch in database.batches for it in batch]
    await keys.close()
