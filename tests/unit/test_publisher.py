"""The publisher without a broker: ids, batches, what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from producers.publisher import MAX_BATCH, AsyncPublisher, Publication, Publisher
from runtime.errors import PublishError
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings

_BODY: dict[str, Any] = {"to": {"user_id": "u1"}, "template": {"id": "hello"}}
_AT = datetime(2026, 1, 1, tzinfo=UTC)


class Broker:
    """Remembers batches; refuses when told."""

    def __init__(self) -> None:
        self.batches: list[list[ProducerRecord]] = []
        self.down = False

    def publish(self, records: Sequence[ProducerRecord]) -> None:
        if self.down:
            raise PublishError("the broker did not acknowledge")
        self.batches.append(list(records))

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        self.publish(records)

    def close(self, timeout_s: float = 10) -> None:
        self.batches.append([])


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def publisher(broker: Broker) -> Publisher:
    return Publisher(KafkaSettings(), tenant="shop", producer=cast(Producer, broker))


def test_retry_with_the_same_key_and_time_makes_the_same_id_and_record(publisher: Publisher, broker: Broker) -> None:
    first = publisher.publish(_BODY, idempotency_key="k", accepted_at=_AT)
    second = publisher.publish(_BODY, idempotency_key="k", accepted_at=int(_AT.timestamp() * 1000))
    assert first == second
    assert broker.batches[0] == broker.batches[1]


def test_key_without_the_events_time_is_refused(publisher: Publisher) -> None:
    with pytest.raises(ValueError, match="accepted_at"):
        publisher.publish(_BODY, idempotency_key="k")
    with pytest.raises(ValueError, match="accepted_at"):
        publisher.publish({**_BODY, "request_id": "k"})


def test_key_that_differs_from_request_id_is_refused(publisher: Publisher) -> None:
    with pytest.raises(ValueError, match="differ"):
        publisher.publish({**_BODY, "request_id": "a"}, idempotency_key="b", accepted_at=_AT)


def test_unacknowledged_record_raises_instead_of_an_id(publisher: Publisher, broker: Broker) -> None:
    broker.down = True
    with pytest.raises(PublishError):
        publisher.publish(_BODY)


def test_many_are_sent_in_batches_of_bounded_size_and_ids_come_in_order(publisher: Publisher, broker: Broker) -> None:
    items = (Publication(_BODY, f"k{number}", _AT) for number in range(MAX_BATCH * 2 + 1))
    published = publisher.publish_many(items)
    assert [len(batch) for batch in broker.batches] == [MAX_BATCH, MAX_BATCH, 1]
    assert published == [dict(r.headers)["ce_id"].decode() for batch in broker.batches for r in batch]


def test_tenant_with_a_colon_is_refused() -> None:
    with pytest.raises(ValueError, match="tenant"):
        Publisher(KafkaSettings(), tenant="a:b", producer=cast(Producer, Broker()))


async def test_async_publisher_makes_the_same_id(publisher: Publisher, broker: Broker) -> None:
    other = AsyncPublisher(KafkaSettings(), tenant="shop", producer=cast(Producer, broker))
    async with other:
        published = await other.publish(_BODY, idempotency_key="k", accepted_at=_AT)
        assert await other.publish_many([Publication(_BODY, "k", _AT)]) == [published]
    assert published == publisher.publish(_BODY, idempotency_key="k", accepted_at=_AT)
