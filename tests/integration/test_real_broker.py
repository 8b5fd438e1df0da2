"""A real broker does what the suite says, with the clients as our roles use them; the broker in memory is held to the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import pytest
from confluent_kafka import Producer as TransactionalProducer
from confluent_kafka.admin import AdminClient, NewTopic

from runtime.kafka.admin import Admin
from runtime.kafka.consumer import Consumer
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from tests.integration.conftest import Broker, broker, until
from tests.support.broker_behaviour import BrokerBehaviour, Cluster

__all__ = ["broker"]  # a fixture

pytestmark = pytest.mark.kafka

SILENT_MS = 6_000
"""The shortest session that the broker allows."""
_names = count()


class Real:
    """A cluster for the suite."""

    def __init__(self, broker: Broker) -> None:
        self._settings = broker.settings
        self._admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        self._consumers: list[Consumer] = []
        self.producer = Producer(self._settings, client_id="suite", linger_ms=1)

    def topic(self, partitions: int = 1, max_bytes: int | None = None) -> str:
        name = f"suite-{next(_names)}"
        config = {} if max_bytes is None else {"max.message.bytes": str(max_bytes)}
        made = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)
        self._admin.create_topics([made])[name].result()
        return name

    def consumer(self, group: str | None = None) -> Consumer:
        made = Consumer(
            self._settings,
            client_id=f"suite-{len(self._consumers)}",
            group=group,
            session_timeout_ms=SILENT_MS,
            max_poll_interval_ms=SILENT_MS,
            fetch_wait_ms=50,
            detect_eof=True,
        )
        self._consumers.append(made)
        return made

    def transaction(self, records: Sequence[ProducerRecord]) -> Callable[[bool], None]:
        writer = TransactionalProducer(
            {"bootstrap.servers": self._settings.bootstrap_servers, "transactional.id": f"suite-{next(_names)}"}
        )
        writer.init_transactions()
        writer.begin_transaction()
        for record in records:
            writer.produce(record.topic, value=record.value, key=record.key, partition=record.partition)
        writer.flush()

        def end(commit: bool) -> None:
            (writer.commit_transaction if commit else writer.abort_transaction)()
            # The coordinator has decided; the partitions' markers, with which readers go on, follow in their own time.
            admin, topics = Admin(self._settings), sorted({record.topic for record in records})
            until(lambda: not admin.held_back(topics), 30, "the transaction's markers")

        return end

    def stand_still(self, consumer: Consumer, others: Callable[[], object]) -> None:
        for _ in range(2 * SILENT_MS // 100):
            others()

    def close(self) -> None:
        for consumer in self._consumers:
            consumer.close()
        self.producer.close()


class TestRealBroker(BrokerBehaviour):
    """Over the network."""

    @pytest.fixture
    def cluster(self, broker: Broker) -> Iterator[Cluster]:
        made = Real(broker)
        yield made
        made.close()
