"""The generations of a resend, reserved and confirmed as POST /v1/notifications/{id}/resend does it.

A reservation is made before the plan is written down and confirmed when its record is in Kafka: the plan holds the number, so a
resend that is resumed, or run twice at once, sends each message once.
May import producers.reference. Never: a record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from producers.reference.database import Database
from producers.reference.resends import Resends
from replay.plan import Item
from runtime.settings import PostgresSettings

_AT_ONCE = 8


class Generations:
    """A context: PostgreSQL is asked only by a resend."""

    def __init__(self, settings: PostgresSettings) -> None:
        self._runner, self._database = asyncio.Runner(), Database(settings)
        self._resends = Resends(self._database)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        try:
            self._runner.run(self._database.open())
        except BaseException:
            self._runner.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._database.close())
        self._runner.close()

    def reserve(self, items: Sequence[Item]) -> list[Item]:
        """The items with the generation each is to have. Raises UnavailableError."""
        above: dict[tuple[str, str], int] = {}
        for item in items:
            key = _key(item)
            above[key] = max(above.get(key, 0), item.generation)
        reserved = self._runner.run(self._reserve(above))
        return [replace(item, generation=reserved[_key(item)]) for item in items]

    async def _reserve(self, above: dict[tuple[str, str], int]) -> dict[tuple[str, str], int]:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def one(tenant: str, nid: str, known: int) -> int:
            async with turns:
                return await self._resends.reserve(tenant, nid, known)

        numbers = await asyncio.gather(*(one(*key, known) for key, known in above.items()))
        return dict(zip(above, numbers, strict=True))

    def confirm(self, items: Sequence[Item]) -> None:
        """These generations are in Kafka. Raises UnavailableError: the batch is then published again, which changes nothing."""
        self._runner.run(self._confirm({(*_key(item), item.generation) for item in items}))

    async def _confirm(self, reservations: set[tuple[str, str, int]]) -> None:
        await asyncio.gather(*(self._resends.confirm(*reservation) for reservation in reservations))


def _key(item: Item) -> tuple[str, str]:
    assert item.notification_id is not None, "only what decodes is sent again"
    return item.tenant, item.notification_id
