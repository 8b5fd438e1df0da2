"""A request found again on a real topic by its id, and the generation of a resend in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import time

import pytest
from pydantic import SecretStr

from producers.reference.database import Database
from producers.reference.resends import Resends
from runtime import ids
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import PostgresSettings
from schemas.codec import codec
from schemas.topics import requests_topic
from tests.integration.conftest import Broker
from tests.integration.reference_stack import Postgres, postgres
from tracking.original import find_request

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres"]


def request(notification_id: str, tenant: str = "t", **more: object) -> bytes:
    value = {
        "notification_id": notification_id,
        "tenant": tenant,
        "accepted_at": ids.accepted_at(notification_id),
        "user_id": "u",
        "template_id": "x",
        **more,
    }
    return codec("NotificationRequest").encode(value)


@pytest.fixture(scope="module")
def wanted(broker: Broker) -> str:
    """A request among others, among bytes that only hold its id, and among another tenant's."""
    nid = ids.notification_id(time.time_ns() // 1_000_000, "t")
    topic = requests_topic("normal")
    producer = Producer(broker.settings, client_id="test")
    noise = [ProducerRecord(topic, f"k{n}".encode(), request(ids.notification_id(n, "t"))) for n in range(3_000)]
    producer.publish(noise)
    producer.publish(
        [
            ProducerRecord(topic, b"other", request(nid, "other")),
            ProducerRecord(topic, b"within", request(ids.notification_id(5, "t"), metadata={"about": nid})),
            ProducerRecord(topic, b"poison", b"\xff" + nid.encode()),
            ProducerRecord(topic, b"empty", None),
            ProducerRecord(topic, b"t:u", request(nid, tags=["it"])),
        ]
    )
    producer.publish(noise)
    producer.close()
    return nid


def test_request_is_found_by_its_id_and_tenant(broker: Broker, wanted: str) -> None:
    began = time.monotonic()
    found = find_request(broker.settings, "t", wanted, "normal")
    assert found is not None
    assert (found.request["notification_id"], found.request["tags"], found.lane) == (wanted, ["it"], "normal")
    assert time.monotonic() - began < 5


def test_request_of_another_tenant_lane_or_time_is_not_found(broker: Broker, wanted: str) -> None:
    assert find_request(broker.settings, "stranger", wanted, "normal") is None
    assert find_request(broker.settings, "t", wanted, "bulk") is None
    assert find_request(broker.settings, "t", ids.notification_id(1_000, "t", "never"), "normal") is None


def test_request_that_took_its_time_to_be_published_is_found(broker: Broker) -> None:
    nid = ids.notification_id(time.time_ns() // 1_000_000 - 200_000, "t")
    producer = Producer(broker.settings, client_id="test")
    producer.publish([ProducerRecord(requests_topic("bulk"), b"t:u", request(nid))])
    producer.close()
    assert find_request(broker.settings, "t", nid, "bulk") is not None


def test_generation_moves_on_only_after_its_confirmation(postgres: Postgres) -> None:
    nid, other = ids.notification_id(1, "t"), ids.notification_id(2, "t")

    async def claims() -> list[int]:
        database = Database(PostgresSettings(dsn=SecretStr(postgres.dsn)))
        await database.open()
        try:
            resends = Resends(database)
            found = [await resends.reserve("t", nid, 0)]
            found += await asyncio.gather(*(resends.reserve("t", nid, 0) for _ in range(5)))
            await resends.confirm("t", nid, 1)
            found.append(await resends.reserve("t", nid, 0))
            await resends.confirm("t", nid, 1)  # an old answer that comes late
            found.append(await resends.reserve("t", nid, 0))
            found.append(await resends.reserve("t", nid, 7))
            found += [await resends.reserve("u", nid, 0), await resends.reserve("t", other, 0)]
            return found
        finally:
            await database.close()

    assert asyncio.run(claims()) == [1, 1, 1, 1, 1, 1, 2, 2, 8, 1, 1]
