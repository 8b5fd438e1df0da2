"""What many callers publish at once, as few batches: one acknowledgement wakes all of a batch's callers.

May import runtime. Never: a Kafka client, what a record is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from runtime.errors import PublishError, TooLargeError
from runtime.records import ProducerRecord


class Broker(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Done when every record is acknowledged. Raises PublishError."""


class _Waiting(NamedTuple):
    records: Sequence[ProducerRecord]
    answer: asyncio.Future[None]


class Batcher:
    """Gives the broker what one turn of the event loop brought as one batch.

    With `hold_s` what comes while a batch is on its way is held back until that is acknowledged, for `hold_s` at most: larger
    batches, for callers that can wait. A batch that is not acknowledged holds nobody back for longer.
    """

    def __init__(self, broker: Broker, timeout_s: float, hold_s: float = 0.0) -> None:
        self._broker, self._timeout_s, self._hold_s = broker, timeout_s, hold_s
        self._waiting: list[_Waiting] = []
        self._next: asyncio.Handle | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def publish(self, records: Sequence[ProducerRecord]) -> asyncio.Future[None]:
        """Done when the broker has the records; fails with PublishError. Its waiter may go, the records are published."""
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.call_soon(self._flush)
        answer: asyncio.Future[None] = loop.create_future()
        self._waiting.append(_Waiting(records, answer))
        return answer

    def _flush(self) -> None:
        self._next = None
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        task = asyncio.ensure_future(self._send(waiting))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        if self._hold_s:
            self._next = asyncio.get_running_loop().call_later(self._hold_s, self._flush)

    async def _send(self, waiting: Sequence[_Waiting]) -> None:
        error, refused = "publishing failed", frozenset[int]()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._broker.send([record for each in waiting for record in each.records])
            error = ""
        except TooLargeError as exc:  # the others are acknowledged
            error, refused = str(exc), frozenset(map(id, exc.records))
        except (PublishError, TimeoutError) as exc:
            error = str(exc) or "the broker did not answer in time"
        except BaseException as exc:
            error += f" ({type(exc).__name__})"
            raise
        finally:
            self._settle(waiting, error, refused)

    def _settle(self, waiting: Sequence[_Waiting], error: str, refused: frozenset[int]) -> None:
        """Wake all; with `refused`, ids of records, the error is that of those who gave these."""
        for records, answer in waiting:
            if answer.done():
                continue
            if error and (not refused or any(id(record) in refused for record in records)):
                answer.set_exception(PublishError(error))
            else:
                answer.set_result(None)
        if self._hold_s and self._next is not None:
            # After those who were woken just now: what they publish next goes with what was held back.
            self._next.cancel()
            self._next = asyncio.get_running_loop().call_soon(self._flush)
