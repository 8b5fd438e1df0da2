"""The router's agent under Faust, without Faust: what it acknowledges, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from processors.router.agents import LaneAgent
from runtime.errors import PublishError
from runtime.process import Context
from runtime.records import ProducerRecord
from runtime.settings import DeadLetterSettings, Settings
from tests.unit.test_enrich import NOW, request, run, views
from tests.unit.test_router_limits import record


class Ended(BaseException):
    """The process ended."""


class Event:
    """A record as Faust hands it over."""

    def __init__(self, log: list[str], offset: int, generation: int = 1, value: bytes | None = None) -> None:
        made = record(request(key=str(offset)), offset)
        self._log = log
        self.message = SimpleNamespace(
            topic=made.topic,
            partition=0,
            offset=offset,
            timestamp=NOW / 1000,
            key=made.key,
            value=made.value if value is None else value,
            headers=(),
            generation_id=generation,
        )

    def ack(self) -> None:
        self._log.append(f"ack {self.message.offset}")


class World:
    """The agent, its queue, and what happens in its order. It is also the app and the producer."""

    def __init__(self, dead_letters: DeadLetterSettings | None = None) -> None:
        self.log: list[str] = []
        self.consumer_generation_id, self.active = 1, True
        self.flow_control = SimpleNamespace(is_active=lambda: self.active)
        self.on_send: Callable[[], None] = lambda: None
        self.queue: asyncio.Queue[Event] = asyncio.Queue()
        context = Context("router", Settings(dead_letters=dead_letters or DeadLetterSettings()), exit_now=self._exit)
        self.agent = LaneAgent(context, "normal", views(), self, self, lambda: NOW, lambda: 0.0)

    def _exit(self, reason: str) -> None:
        raise Ended(reason)

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        self.on_send()
        self.log.append(f"published {len(records)}")

    def put(self, *offsets: int, **fields: Any) -> None:
        for offset in offsets:
            self.queue.put_nowait(Event(self.log, offset, **fields))

    async def turn(self) -> None:
        """Let the agent work until it waits for more."""
        route = asyncio.ensure_future(self.agent.route(SimpleNamespace(channel=SimpleNamespace(queue=self.queue))))
        for _ in range(20):
            await asyncio.sleep(0)
        if route.done():
            route.result()
        route.cancel()


async def test_events_are_acknowledged_after_everything_they_became_is_published() -> None:
    world = World()
    world.put(0, 1)
    await world.turn()
    assert world.log == [f"published {2 * len(run(request()))}", "ack 0", "ack 1"]


async def test_what_is_not_published_is_not_acknowledged_and_ends_the_process() -> None:
    world = World()

    def refuse() -> None:
        raise PublishError("no answer")

    world.on_send = refuse
    world.put(0)
    with pytest.raises(Ended, match="no answer"):
        await world.turn()
    assert world.log == []


async def test_events_of_another_generation_are_dropped_unacknowledged() -> None:
    world = World()
    world.put(0, generation=0)
    world.put(1)
    await world.turn()
    assert world.log == [f"published {len(run(request()))}", "ack 1"]


async def test_rebalance_while_publishing_leaves_the_batch_unacknowledged() -> None:
    world = World()

    def rebalance() -> None:
        world.consumer_generation_id = 2

    world.on_send = rebalance
    world.put(0)
    await world.turn()
    assert world.log == [f"published {len(run(request()))}"]


async def test_nothing_is_routed_while_partitions_come_and_go() -> None:
    world = World()
    world.active = False
    world.put(0)
    await world.turn()
    assert world.log == []


async def test_flood_of_poison_holds_the_agent_with_nothing_acknowledged() -> None:
    world = World(DeadLetterSettings(min_count=2, max_ratio=0.5))
    world.put(0, 1, value=b"junk")
    await world.turn()
    assert world.log == []
