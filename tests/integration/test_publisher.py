"""The publisher on a real broker."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from producers.publisher import AsyncPublisher, Publication, Publisher
from runtime.errors import PublishError
from runtime.settings import KafkaSettings
from schemas.codec import codec
from schemas.topics import requests_topic
from tests.integration.conftest import Broker
from tests.integration.reference_stack import read_topic

pytestmark = pytest.mark.kafka

_AT = datetime(2026, 1, 1, tzinfo=UTC)


def _body(user: str, **more: Any) -> dict[str, Any]:
    return {"to": {"user_id": user}, "template": {"id": "hello"}, **more}


def _ids(broker: Broker, lane: str) -> list[str]:
    records = read_topic(broker.settings, requests_topic(lane))
    return [codec("NotificationRequest").decode(r.value)["notification_id"] for r in records]


def test_returned_ids_are_on_the_topic_of_their_lane(broker: Broker) -> None:
    with Publisher(broker.settings, tenant="shop", source="tests") as publisher:
        one = publisher.publish(_body("u1", priority="critical"), correlation_id="c")
        many = publisher.publish_many(_body(f"u{number}", priority="bulk") for number in range(5_000))
    assert one in _ids(broker, "critical")
    assert sorted(many) == sorted(_ids(broker, "bulk"))
    assert len(set(many)) == 5_000


def test_retry_of_a_key_publishes_the_same_id(broker: Broker) -> None:
    with Publisher(broker.settings, tenant="shop") as publisher:
        ids = {publisher.publish(_body("u"), idempotency_key="k", accepted_at=_AT) for _ in range(3)}
    assert len(ids) == 1
    assert _ids(broker, "normal").count(ids.pop()) == 3


async def test_async_publisher_publishes(broker: Broker) -> None:
    async with AsyncPublisher(broker.settings, tenant="shop") as publisher:
        one = await publisher.publish(_body("a"))
        more = await publisher.publish_many([Publication(_body("b"), "key", _AT), _body("c")])
    assert {one, *more} <= set(_ids(broker, "normal"))


def test_broker_that_is_not_there_raises_in_time() -> None:
    with Publisher(KafkaSettings(bootstrap_servers="127.0.0.1:1"), tenant="shop", timeout_s=1) as publisher:
        began = time.monotonic()
        with pytest.raises(PublishError):
            publisher.publish(_body("u"))
        assert time.monotonic() - began < 5


_STALLED = """
import sys
from runtime.kafka.consumer import Consumer
from runtime.settings import KafkaSettings
consumer = Consumer(KafkaSettings(bootstrap_servers=sys.argv[1]), client_id="stalled", group=None)
partitions = consumer.partitions_for_topic(sys.argv[2])
consumer.assign(dict.fromkeys(partitions, 0))
if sys.argv[3] == "stalled":
    from confluent_kafka import TopicPartition
    consumer._consumer.pause([TopicPartition(*p) for p in partitions])  # what the client does not know it does
seen = 0
for _ in range(50):
    seen += len(consumer.consume(1000, 1))
print(seen)
"""


def test_consumer_that_is_given_nothing_although_there_is_something_ends_its_process(broker: Broker) -> None:
    with Publisher(broker.settings, tenant="t") as publisher:
        publisher.publish(
            {"to": {"email": "a@example.org"}, "content": {"subject": "s", "text": "t"}, "priority": "bulk"}
        )
    stalled, well = (
        subprocess.Popen(
            [sys.executable, "-c", _STALLED, broker.settings.bootstrap_servers, "notify.requests.bulk.v1", how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for how in ("stalled", "well")
    )
    with stalled, well:
        _, said = stalled.communicate(timeout=120)
        seen, others_said = well.communicate(timeout=120)
    assert stalled.returncode == 70, said
    assert "records that are not fetched" in said
    assert well.returncode == 0, others_said
    assert int(seen) >= 1
