"""An answer to a write waits, up to a second, until the relay has published it.

So a notification that is sent right after it meets routers that know.
May import runtime. Never: SQL, a route.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from runtime.clock import system_monotonic
from runtime.errors import UnavailableError

PUBLISH_WAIT_S = 1.0
_POLL_S = 0.005
_GIVE_UP_S = 10.0


class Propagation:
    """Waits until the relay has published outbox rows; one look at PostgreSQL serves all who wait."""

    def __init__(self, unpublished: Callable[[list[int]], Awaitable[set[int]]]) -> None:
        self._unpublished = unpublished
        self._waiting: dict[int, asyncio.Event] = {}
        self._looking: asyncio.Task[None] | None = None
        self._tired_until = 0.0

    async def wait(self, outbox_id: int | None) -> None:
        """Return when the row is published, or after a second: the write is done in any case."""
        if outbox_id is None or system_monotonic() < self._tired_until:
            return
        done = self._waiting.setdefault(outbox_id, asyncio.Event())
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(PUBLISH_WAIT_S):
                await done.wait()
        except TimeoutError:
            self._tired_until = system_monotonic() + _GIVE_UP_S  # the relay is down: do not slow every write
        finally:
            self._waiting.pop(outbox_id, None)

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(_POLL_S)
            try:
                left = await self._unpublished(list(self._waiting))
            except UnavailableError:
                return
            for outbox_id, done in self._waiting.items():
                if outbox_id not in left:
                    done.set()
