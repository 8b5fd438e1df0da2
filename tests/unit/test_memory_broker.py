"""The broker in memory does what a real one does: tests/integration/test_real_broker.py runs the same suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

import pytest

from runtime.kafka.consumer import Consumer
from runtime.records import ProducerRecord
from tests.support.broker import MemoryBroker
from tests.support.broker_behaviour import BrokerBehaviour, Cluster


class InMemory:
    """A cluster for the suite."""

    def __init__(self) -> None:
        moments = count(1)
        self._broker, self._names = MemoryBroker(lambda: next(moments)), count()
        self.producer = self._broker.producer()

    def topic(self, partitions: int = 1, max_bytes: int | None = None) -> str:
        name = f"t{next(self._names)}"
        self._broker.create(name, partitions, max_bytes or 1 << 20)
        return name

    def consumer(self, group: str | None = None) -> Consumer:
        return self._broker.consumer(group, detect_eof=True)

    def transaction(self, records: Sequence[ProducerRecord]) -> Callable[[bool], None]:
        return self._broker.transaction(records)

    def stand_still(self, consumer: Consumer, others: Callable[[], object]) -> None:
        self._broker.expire(consumer)


class TestMemoryBroker(BrokerBehaviour):
    """In memory."""

    @pytest.fixture
    def cluster(self) -> Cluster:
        return InMemory()
