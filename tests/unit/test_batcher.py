"""Batches of records: who is woken, by what, and what is held back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from producers.batcher import Batcher
from runtime.errors import PublishError, TooLargeError
from runtime.records import ProducerRecord


class Broker:
    """Keeps batches; answers when it is told to."""

    def __init__(self, open_: bool = True) -> None:
        self.batches: list[list[ProducerRecord]] = []
        self.refused: list[ProducerRecord] = []
        self.answers = asyncio.Event()
        self.asked = asyncio.Semaphore(0)
        if open_:
            self.answers.set()

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        self.batches.append(list(records))
        self.asked.release()
        await self.answers.wait()
        refused = [record for record in records if record in self.refused]
        if refused:
            raise TooLargeError("too large", refused)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def record(value: bytes = b"v") -> ProducerRecord:
    return ProducerRecord("t", b"k", value)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_turn_of_the_loop_is_one_batch() -> None:
    broker = Broker()
    batcher = Batcher(broker, 1)
    await asyncio.gather(*[batcher.publish([record()]) for _ in range(10)])
    await asyncio.gather(*[batcher.publish([record(), record()]) for _ in range(3)])
    assert broker.sizes == [10, 6]


async def test_caller_that_goes_away_does_not_cancel_the_batch() -> None:
    broker = Broker()
    batcher = Batcher(broker, 1)

    async def wait() -> None:
        await batcher.publish([record()])

    gone, stays = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    gone.cancel()
    await stays
    assert broker.sizes == [2]


async def test_what_comes_while_a_batch_is_on_its_way_is_held_back_until_that_is_acknowledged() -> None:
    broker = Broker(open_=False)
    batcher = Batcher(broker, 10, hold_s=10)

    async def twice() -> None:
        await batcher.publish([record(b"first")])
        await batcher.publish([record(b"second")])

    early = asyncio.ensure_future(twice())
    await turn()
    late = [batcher.publish([record(b"late")]) for _ in range(3)]
    await turn()
    assert broker.sizes == [1]
    broker.answers.set()
    await asyncio.gather(early, *late)
    assert broker.sizes == [1, 4], "those that were woken publish with those that were held back"
    await turn()
    await batcher.publish([record()])
    assert broker.sizes == [1, 4, 1], "nothing is held back after the last acknowledgement"


async def test_batch_that_is_not_acknowledged_holds_others_back_for_hold_s_only() -> None:
    broker = Broker(open_=False)
    batcher = Batcher(broker, 10, hold_s=0.01)
    waits = [batcher.publish([record()])]
    await turn()
    waits.append(batcher.publish([record()]))
    async with asyncio.timeout(10):
        await broker.asked.acquire()
        await broker.asked.acquire()
    broker.answers.set()
    await asyncio.gather(*waits)


async def test_timeout_and_refusal_fail_those_whom_they_concern() -> None:
    broker = Broker()
    batcher = Batcher(broker, 1)
    large = record(b"large")
    broker.refused = [large]
    found = await asyncio.gather(batcher.publish([record()]), batcher.publish([large]), return_exceptions=True)
    assert found[0] is None
    assert isinstance(found[1], PublishError)
    broker.answers.clear()
    with pytest.raises(PublishError, match="did not answer in time"):
        await Batcher(broker, 0.01).publish([record()])
