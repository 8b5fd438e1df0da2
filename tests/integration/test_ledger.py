"""The ledger on a real broker: read on from where its store stands, through kills and while the topic is being compacted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import pytest

from runtime.clock import system_clock
from runtime.kafka.admin import Admin
from runtime.kafka.consumer import Consumer
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import ViewSettings
from runtime.stores import MemoryStore
from runtime.views import open_store
from schemas.codec import codec
from schemas.topics import ledger_ms, ledger_topic
from senders.consumers import ledger_consumer
from senders.ledger import Ledger, LedgerReader
from tests.integration.conftest import Broker, broker, until
from tests.integration.pipeline import World, profiles, requests, world

__all__ = ["broker", "world"]  # fixtures

pytestmark = pytest.mark.kafka
TOPIC = ledger_topic("email", "bulk")
PARTITIONS = [(TOPIC, n) for n in range(4)]


def entries(ids: list[str], next_attempt: int, state: str | None) -> list[ProducerRecord]:
    return [
        ProducerRecord(
            TOPIC,
            id_.encode(),
            partition=n % len(PARTITIONS),
            value=codec("LedgerEntry").encode(
                {"message_id": id_, "next_attempt": next_attempt, "state": state, "recorded_at": system_clock()}
            ),
        )
        for n, id_ in enumerate(ids)
    ]


def reader(broker: Broker, ledger: Ledger) -> LedgerReader:
    return LedgerReader(ledger_consumer(broker.settings, "email"), "email", ledger, lambda dead_letters: None)


def test_a_store_on_disk_reads_on_where_it_stood(broker: Broker, tmp_path: Path) -> None:
    producer = Producer(broker.settings, client_id="test")
    first, second = [str(uuid4()) for _ in range(400)], [str(uuid4()) for _ in range(40)]
    producer.publish(entries(first, 2, "sent"))
    settings = ViewSettings(backend="rocksdb", directory=tmp_path)
    for new, taken in ((first, 400), (second, 40)):
        ledger = Ledger(open_store(settings, "sender-email", "ledger", ledger_ms() // 1_000))
        reading = reader(broker, ledger)
        assert reading.read(PARTITIONS) == taken, "what the store has is not read again"
        assert {ledger.duplicate(id_, 1) for id_ in first} == {"settled"}
        assert {ledger.duplicate(id_, 2) for id_ in new} <= {"settled", "attempt"}
        reading.close()
        ledger.close()
        producer.publish(entries(second, 3, None) if new is first else [])
    producer.close()


def test_takeover_that_is_cut_short_is_read_again(broker: Broker, tmp_path: Path) -> None:
    producer, ids = Producer(broker.settings, client_id="test"), [str(uuid4()) for _ in range(40)]
    producer.publish(entries(ids, 2, "sent"))
    producer.close()
    settings = ViewSettings(backend="rocksdb", directory=tmp_path)
    ledger = Ledger(open_store(settings, "sender-email", "ledger", ledger_ms() // 1_000))

    class Killed(Consumer):
        def consume(self, max_records: int, timeout_s: float) -> NoReturn:
            reading.flush()
            raise KeyboardInterrupt

    killed = Killed(broker.settings, client_id="ledger-email", group=None, detect_eof=True)
    reading = LedgerReader(killed, "email", ledger, lambda dead_letters: None)
    with pytest.raises(KeyboardInterrupt):
        reading.read(PARTITIONS)
    reading.close()
    ledger.close()
    again = Ledger(open_store(settings, "sender-email", "ledger", ledger_ms() // 1_000))
    reading = reader(broker, again)
    reading.read(PARTITIONS)
    assert {again.duplicate(id_, 1) for id_ in ids} == {"settled"}
    reading.close()
    again.close()


def test_what_is_recorded_is_seen_before_and_after_it_is_flushed(tmp_path: Path) -> None:
    settings = ViewSettings(backend="rocksdb", directory=tmp_path)
    ledger, id_ = Ledger(open_store(settings, "sender", "ledger", ledger_ms() // 1_000)), str(uuid4())
    ledger.record(id_, 3, None, system_clock())
    assert [ledger.duplicate(id_, attempt) for attempt in (2, 3)] == ["attempt", None]
    ledger.flush({0: 7}, system_clock())
    ledger.record(id_, 2, "sent", system_clock())  # older: a zombie's
    assert [ledger.duplicate(id_, attempt) for attempt in (2, 3)] == ["attempt", None]
    ledger.close()
    again = Ledger(open_store(settings, "sender", "ledger", ledger_ms() // 1_000))
    assert (again.duplicate(id_, 2), again.positions()) == ("attempt", {0: 7})
    again.close()


def test_memory_forgets_what_is_older_than_seven_days() -> None:
    ledger, old, new = Ledger(MemoryStore()), str(uuid4()), str(uuid4())
    now = system_clock()
    ledger.record(old, 2, "sent", now - ledger_ms() - 60_000)
    ledger.record(new, 2, "sent", now)
    ledger.flush({}, now)
    assert ledger.forget_before(now - ledger_ms()) == 1
    assert [ledger.duplicate(id_, 1) for id_ in (old, new)] == [None, "settled"]


@pytest.mark.slow
def test_takeover_while_the_topic_is_compacted_knows_every_last_entry(broker: Broker) -> None:
    admin = Admin(broker.settings)
    quick = {"segment.ms": "500", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "1000"}
    admin.alter_configs({TOPIC: {**quick, "min.compaction.lag.ms": "0"}})
    producer = Producer(broker.settings, client_id="test")
    ids = [str(uuid4()) for _ in range(500)]
    read = []
    for next_attempt in range(2, 42):
        producer.publish(entries(ids, next_attempt, "sent" if next_attempt == 41 else None))
        time.sleep(0.6)
        if next_attempt % 10 == 1:
            ledger = Ledger(MemoryStore())
            reading = reader(broker, ledger)
            read.append(reading.read(PARTITIONS))
            assert all(ledger.duplicate(id_, next_attempt - 1) for id_ in ids)
            assert ledger.duplicate(ids[0], next_attempt) == ("settled" if next_attempt == 41 else None)
            reading.close()
    producer.close()
    assert read[-1] < 40 * len(ids), "nothing was compacted meanwhile"


def test_sender_on_rocksdb_killed_and_started_again_drops_what_it_sent(world: World, tmp_path: Path) -> None:
    env = {"HELIOGRAPH_VIEWS__BACKEND": "rocksdb", "HELIOGRAPH_VIEWS__DIRECTORY": str(tmp_path)}
    world.publish(profiles("rocks-", 20))
    world.run("router", "--lane", "normal")
    records, made = requests("rocks-", 20)
    for _ in range(2):
        sender = world.run("sender", "--channel", "email", **env)
        world.publish(records)
        until(lambda: len(world.sent_messages(made)) == 20, what="all sent")
        os.kill(sender.pid, signal.SIGKILL)
        sender.wait(10)
    world.run("sender", "--channel", "email", **env)
    world.publish(records)
    marker, marked = requests(
        "rocks-marker-", 1, user_id=None, addresses=[{"channel": "email", "value": "rocks-m@example.org"}]
    )
    world.publish(marker)
    until(lambda: len(world.sent_messages(marked)) == 1, what="what came after them")
    world.broker.stop_roles()
    assert world.accepted("smtp", "rocks-") == {
        **{f"rocks-{n}@example.org": 1 for n in range(20)},
        "rocks-m@example.org": 1,
    }
