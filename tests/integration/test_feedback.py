"""Hostile statuses and a server that only reads, before the relay: what is honest goes on, and nothing ends."""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from local.ports import PortBook
from producers.reference.database import Database, InputRefused
from producers.reference.feedback import Feedback
from producers.reference.resends import RESENDABLE_MS, forgotten_below
from producers.reference.store import Bounced, ReferenceStore
from runtime import ids
from runtime.errors import UnavailableError
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import PostgresSettings
from schemas.codec import codec
from schemas.topics import STATUS
from tests.integration.conftest import until
from tests.integration.reference_stack import Postgres, World, postgres, world
from tests.support.records import hostile_records
from tests.unit.test_feedback import bounce, status

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
__all__ = ["postgres", "world"]

NOW = 1_770_000_000_000
_FORGED: list[dict[str, Any]] = [
    {"tenant": "a\0b"},
    {"tenant": "t" * 3_000},
    {"recipient": "u\0"},
    {"recipient": "addr:" + "\0" * 32},
    {"recipient": "addr:" + "x" * 5_000},
    {"detail": "550 \0"},
    {"provider": "p\0"},
    {"notification_id": "\0"},
    {"message_id": "\0"},
    {"occurred_at": -1},
    {"occurred_at": (1 << 63) - 1},
    {"recipient": "u" * 900_000},
]


def forged() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for fields in _FORGED:
        made += [{**status(), **fields}, {**bounce("email", "hard_bounce"), **fields}]
    return made


def encoded(*statuses: Any) -> list[bytes | None]:
    return [codec("DeliveryStatus").encode(each) for each in statuses]


@pytest.fixture
def dsn(postgres: Postgres) -> PostgresSettings:
    return PostgresSettings(dsn=SecretStr(postgres.dsn))


def test_statuses_of_other_publishers_are_stored_or_skipped_and_block_nothing(
    dsn: PostgresSettings,
) -> None:
    @given(
        st.lists(
            st.builds(
                lambda record, what: {**record, "channel": what[0], "reason": what[1]},
                hostile_records(
                    "DeliveryStatus",
                    state=st.just("bounced"),
                    notification_id=st.just(status()["notification_id"]),
                    message_id=st.just(status()["message_id"]),
                    tenant=st.sampled_from(["shop", "a\0b"]),
                ),
                st.sampled_from([("push", "invalid_token"), ("email", "hard_bounce"), ("sms", "invalid_number")]),
            ),
            min_size=1,
            max_size=20,
        )
    )
    @settings(max_examples=40, deadline=None)
    def judged(hostile: list[dict[str, Any]]) -> None:
        async def process() -> None:
            database = Database(dsn)
            await database.open()
            try:
                await Feedback(ReferenceStore(database)).process(encoded(*hostile, *forged()), 0.0)
                assert database.available
            finally:
                await database.close()

        asyncio.run(process())

    judged()


@pytest.mark.parametrize(
    ("tenant", "recipient"),
    [
        ("a\0b", "addr:" + "0" * 32),
        ("t", "addr:" + "".join(random.Random(1).choices("0123456789abcdef", k=50_000))),
        ("t", "u\0"),
        ("t", "\ud800"),
    ],
)
def test_what_postgresql_never_takes_is_the_inputs_fault_not_an_outage(
    dsn: PostgresSettings, tenant: str, recipient: str
) -> None:
    async def suppress() -> None:
        database = Database(dsn)
        await database.open()
        try:
            store = ReferenceStore(database)
            with pytest.raises(InputRefused):
                await store.suppress_bounced(Bounced(tenant, "email", recipient, lambda _: True, "r", "s" * 9, NOW))
            assert database.available
            assert (await store.list_users("t", "", 1)).rows == []
        finally:
            await database.close()

    asyncio.run(suppress())


def test_relay_survives_hostile_statuses_and_removes_the_invalid_device_after_them(world: World) -> None:
    book = PortBook()
    port = book.reserve("metrics")
    api = world.run("api")
    relay = world.run("relay", HELIOGRAPH_METRICS__PORT=str(port))
    world.wait_ready()
    user = {"id": "honest", "devices": [{"platform": "fcm", "token": "tok"}]}
    assert world.api.call("POST", "/v1/users", user).status == 201
    producer = Producer(world.broker.settings, client_id="test")
    partition_key = b"one"
    hostile = [ProducerRecord(STATUS, partition_key, codec("DeliveryStatus").encode(record)) for record in forged()]
    rubbish = [ProducerRecord(STATUS, partition_key, raw) for raw in (b"\xff", None, b"\0\0\0\0\x02")]
    nid = ids.notification_id(int(time.time() * 1000) + 60_000, "default")
    dead = {
        **status(
            notification_id=nid, tenant="default", recipient="honest", occurred_at=int(time.time() * 1000) + 60_000
        ),
        "message_id": ids.message_id(nid, "push", ids.address_hash("push", "tok")),
    }
    producer.publish([*hostile, *rubbish, ProducerRecord(STATUS, partition_key, codec("DeliveryStatus").encode(dead))])
    producer.close()
    until(lambda: world.api.call("GET", "/v1/users/honest").body["devices"] == [], 30, "the device to be dropped")
    assert relay.poll() is None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
        assert json.load(response) == {"status": "ready"}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text = response.read().decode()
    assert "heliograph_feedback_running 1.0" in text
    assert 'heliograph_feedback_passed_over_total{cause="implausible"}' in text
    for role in (relay, api):
        role.terminate()
        assert role.wait(30) == 0
        world.broker.roles.remove(role)
    book.close()


@pytest.fixture
def read_only(postgres: Postgres) -> Iterator[Any]:
    """Sets the primary to read only, and back."""

    def switch(on: bool) -> None:
        with psycopg.connect(postgres.dsn, autocommit=True) as connection:
            connection.execute("SET transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
            connection.execute("SELECT pg_reload_conf()")

    yield switch
    switch(False)


def test_primary_that_only_reads_is_noticed_and_so_is_its_return(dsn: PostgresSettings, read_only: Any) -> None:
    async def watch() -> None:
        database = Database(dsn)
        await database.open()
        try:
            assert database.available
            read_only(True)
            await changes(database, False)
            with pytest.raises(UnavailableError):
                await database.run(lambda connection: connection.execute("SELECT 1"))
            read_only(False)
            await changes(database, True)
        finally:
            await database.close()

    async def changes(database: Database, wanted: bool) -> None:
        for _ in range(200):
            if database.available is wanted:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"available never became {wanted}")

    asyncio.run(watch())


def test_write_that_meets_a_read_only_primary_is_unavailable(dsn: PostgresSettings, read_only: Any) -> None:
    async def write() -> None:
        database = Database(dsn)
        await database.open()
        try:
            read_only(True)
            await asyncio.sleep(0.2)
            with pytest.raises(UnavailableError):
                await ReferenceStore(database).replace_preferences("t", "u", {"channels": {}, "categories": {}})
        finally:
            await database.close()

    asyncio.run(write())


def test_rows_of_resends_live_as_long_as_a_resend_is_possible() -> None:
    edge = NOW - RESENDABLE_MS
    assert str(forgotten_below(NOW)) < ids.notification_id(edge, "t"), "in PostgreSQL's order, that of the bytes"
    assert str(forgotten_below(NOW)) > ids.notification_id(edge - 3 * 86_400_000, "t")
