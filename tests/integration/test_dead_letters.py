"""A dead letter that cannot be written, and too many of them: either halts its stage with nothing lost; it continues once that is fixed."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import confluent_kafka
import pytest

from local.ports import PortBook
from processors.groups import TIMERS_GROUP, router_group
from runtime import ids
from runtime.kafka.admin import Admin
from runtime.kafka.client import Partition
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.topics import DEAD_LETTERS, STATUS, TIMERS, dispatch_topic, requests_topic
from sinks.role import GROUP as SINK_GROUP
from tests.integration.conftest import Broker, until
from tests.integration.reference_stack import end, read_topic
from tests.support.clickhouse import Server

pytestmark = [pytest.mark.kafka, pytest.mark.faults]
LIMIT = "max.message.bytes"
POISON = b"\x00\x00\x00\x00\x7bthis is no record"


@dataclass
class World:
    """A broker, and roles whose readiness can be asked."""

    broker: Broker
    producer: Producer
    admin: Admin
    book: PortBook
    ports: dict[str, int] = field(default_factory=dict)

    def run(self, *role: str, **env: str) -> subprocess.Popen[bytes]:
        name = "-".join(role)
        if name not in self.ports:
            self.ports[name] = self.book.reserve(name)
        return self.broker.run(*role, HELIOGRAPH_METRICS__PORT=str(self.ports[name]), **env)

    def log(self, *role: str) -> str:
        return (self.broker.directory / f"{'-'.join(role)}.log").read_text()

    def ask(self, role: tuple[str, ...], path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['-'.join(role)]}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()
        except OSError:
            return 0, ""

    def poison(self, topic: str, key: bytes) -> Partition:
        """Publish an undecodable record; returns its partition."""
        before = {(r.topic, r.partition, r.offset) for r in read_topic(self.broker.settings, topic)}
        self.producer.publish([ProducerRecord(topic, key, POISON)])
        after = {(r.topic, r.partition, r.offset) for r in read_topic(self.broker.settings, topic)}
        ((name, partition, self.offset),) = after - before
        return name, partition

    def dead_letters(self, topic: str, stage: str) -> Counter[tuple[int, int]]:
        """Times that each record of a topic, by partition and offset, was dead-lettered by a stage."""
        found = (codec("DeadLetter").decode(r.value) for r in read_topic(self.broker.settings, DEAD_LETTERS))
        return Counter((x["partition"], x["offset"]) for x in found if x["topic"] == topic and x["stage"] == stage)

    def committed(self, group: str, partition: Partition) -> int:
        return self.admin.group_offsets(group, [partition[0]])[0][partition]

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Meanwhile no dead letter is small enough for its topic."""
        allowed = self.admin.configs([DEAD_LETTERS])[DEAD_LETTERS][LIMIT]
        self.admin.alter_configs({DEAD_LETTERS: {LIMIT: "60"}})
        try:
            yield
        finally:
            self.admin.alter_configs({DEAD_LETTERS: {LIMIT: allowed}})
            time.sleep(0.5)  # the broker answers before it takes the change in


@pytest.fixture(scope="module")
def world(broker: Broker) -> Iterator[World]:
    producer, book = Producer(broker.settings, client_id="test"), PortBook()
    yield World(broker, producer, Admin(broker.settings), book)
    broker.stop_roles()
    producer.close()
    book.close()


def request(key: bytes) -> ProducerRecord:
    now = int(time.time() * 1000)
    made = {
        "notification_id": ids.notification_id(now, "t", key.decode()),
        "tenant": "t",
        "accepted_at": now,
        "addresses": [{"channel": "email", "value": "a@example.org"}],
        "content": b'{"subject": "s", "text": "t"}',
    }
    return ProducerRecord(requests_topic("normal"), key, codec("NotificationRequest").encode(made))


@pytest.mark.parametrize("engine", ["faust", "loop"])
def test_router_stops_rather_than_lose_a_record(world: World, engine: str) -> None:
    role, topic, group = ("router", "--lane", "normal"), requests_topic("normal"), router_group("normal")
    partition = world.poison(topic, engine.encode())
    offset = world.offset
    world.producer.publish([request(engine.encode())])  # behind it
    with world.refused():
        ended = world.run(*role, HELIOGRAPH_ROUTER__ENGINE=engine)
        assert ended.wait(60) != 0
        world.broker.roles.remove(ended)
        assert world.committed(group, partition) <= offset
        assert world.dead_letters(topic, "router")[partition[1], offset] == 0
    lines = [line for line in world.log(*role).splitlines() if "max.message.bytes" in line]
    assert 1 <= len(lines) <= 2  # the log's and, where the role ends in order, that on stderr
    assert all(DEAD_LETTERS in line for line in lines)
    world.run(*role, HELIOGRAPH_ROUTER__ENGINE=engine)
    until(lambda: world.committed(group, partition) > offset + 1, what="both records committed")
    world.broker.stop_roles()
    assert world.dead_letters(topic, "router")[partition[1], offset] == 1
    (world.broker.directory / "router---lane-normal.log").unlink()


def test_sender_stops_rather_than_lose_a_record(world: World, tmp_path: Path) -> None:
    role, topic, group = ("sender", "--channel", "email"), dispatch_topic("email", "normal"), "heliograph-sender-email"
    config = tmp_path / "heliograph.toml"
    config.write_text(
        '[[providers]]\nname = "mail"\nchannel = "email"\nkind = "smtp"\nhost = "127.0.0.1"\n'
        f'port = {world.book.reserve("nobody")}\ntls = "none"\nfrom_address = "no-reply@example.org"\n'
    )
    partition = world.poison(topic, b"k")
    offset = world.offset
    with world.refused():
        ended = world.run(*role, HELIOGRAPH_CONFIG=str(config))
        assert ended.wait(60) != 0
        world.broker.roles.remove(ended)
        assert world.committed(group, partition) <= offset
    assert f"refuses a record of {DEAD_LETTERS}" in world.log(*role)
    world.run(*role, HELIOGRAPH_CONFIG=str(config))
    until(lambda: world.committed(group, partition) > offset, what="the record committed")
    world.broker.stop_roles()
    assert world.dead_letters(topic, "sender")[partition[1], offset] == 1


def test_timers_stop_rather_than_lose_a_record(world: World) -> None:
    partition = world.poison(TIMERS, b"k")
    offset = world.offset
    with world.refused():
        ended = world.run("timers")
        assert ended.wait(60) != 0
        world.broker.roles.remove(ended)
        assert [r.value for r in read_topic(world.broker.settings, TIMERS) if r.key == b"k"] == [POISON]  # no tombstone
        assert world.committed(TIMERS_GROUP, partition) <= offset
    assert f"refuses a record of {DEAD_LETTERS}" in world.log("timers")
    world.run("timers")
    until(
        lambda: [r.value for r in read_topic(world.broker.settings, TIMERS) if r.key == b"k"][-1] is None,
        what="the tombstone",
    )
    world.broker.stop_roles()
    assert world.dead_letters(TIMERS, "timers")[partition[1], offset] == 1


@pytest.mark.clickhouse
def test_sink_waits_rather_than_lose_a_record_and_continues_by_itself(world: World, tmp_path: Path) -> None:
    server = Server(tmp_path / "data").start()
    try:
        partition = world.poison(STATUS, b"k")
        offset = world.offset
        with world.refused():
            sink = world.run("sink", HELIOGRAPH_CLICKHOUSE__URL=f"http://127.0.0.1:{server.port}")
            until(lambda: DEAD_LETTERS in world.ask(("sink",), "/readyz")[1], what="the reason")
            assert world.ask(("sink",), "/readyz")[0] == 503
            time.sleep(2)
            assert sink.poll() is None
            assert world.committed(SINK_GROUP, partition) <= offset
        until(lambda: world.committed(SINK_GROUP, partition) > offset, what="the record committed")
        until(lambda: world.ask(("sink",), "/readyz")[0] == 200, what="readiness")
        assert end(sink) == 0
        world.broker.roles.remove(sink)
        assert world.dead_letters(STATUS, "sink")[partition[1], offset] == 1
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("engine", ["faust", "loop"])
def test_flood_halts_the_router_until_an_operator_raises_the_ratio(world: World, engine: str) -> None:
    lane = {"faust": "bulk", "loop": "critical"}[engine]
    role, topic, count, most = ("router", "--lane", lane), requests_topic(lane), 400, 100
    world.producer.publish([ProducerRecord(topic, f"{n}".encode(), POISON) for n in range(count)])
    env = {
        "HELIOGRAPH_ROUTER__ENGINE": engine,
        "HELIOGRAPH_ROUTER__BATCH_SIZE": "30",
        "HELIOGRAPH_DEAD_LETTERS__MIN_COUNT": str(most),
    }
    router = world.run(*role, **env)
    until(lambda: "HELIOGRAPH_DEAD_LETTERS__MAX_RATIO=1" in world.ask(role, "/readyz")[1], what="the reason")
    held = world.dead_letters(topic, "router")
    assert 0 < len(held) < most
    time.sleep(3)
    assert router.poll() is None
    assert world.ask(role, "/readyz")[0] == 503
    assert world.ask(role, "/livez")[0] == 200
    assert 'heliograph_dead_letter_brake{stage="router"} 1.0' in world.ask(role, "/metrics")[1]
    assert world.dead_letters(topic, "router") == held  # and nothing more
    _, lag = world.admin.group_offsets(router_group(lane), [topic])
    assert sum(lag.values()) >= count - len(held)
    assert world.log(*role).count('"halted"') == 1
    assert end(router) == 0
    world.broker.roles.remove(router)

    world.run(*role, **env, HELIOGRAPH_DEAD_LETTERS__MAX_RATIO="1")
    until(
        lambda: not any(world.admin.group_offsets(router_group(lane), [topic])[1].values()),
        what="the rest dead-lettered",
    )
    world.broker.stop_roles()
    dead_letters = world.dead_letters(topic, "router")
    assert len(dead_letters) == count
    assert all(dead_letters[each] == 1 for each in dead_letters if each not in held)


def test_flood_halts_the_sender_until_an_operator_raises_the_ratio(world: World, tmp_path: Path) -> None:
    role, topic, count, most = ("sender", "--channel", "sms"), dispatch_topic("sms", "bulk"), 400, 100
    config = tmp_path / "heliograph.toml"
    config.write_text(
        '[[providers]]\nname = "text"\nchannel = "sms"\nkind = "twilio"\nbase_url = "http://127.0.0.1:1"\n'
        'account_sid = "AC0"\nauth_token = "t"\nfrom = "+15005550006"\n'
    )
    world.producer.publish([ProducerRecord(topic, f"{n}".encode(), POISON) for n in range(count)])
    env = {"HELIOGRAPH_CONFIG": str(config), "HELIOGRAPH_DEAD_LETTERS__MIN_COUNT": str(most)}
    sender = world.run(*role, **env)
    until(lambda: "HELIOGRAPH_DEAD_LETTERS__MAX_RATIO=1" in world.ask(role, "/readyz")[1], what="the reason")
    time.sleep(2)
    held = world.dead_letters(topic, "sender")
    assert 0 < len(held) < most
    assert sender.poll() is None
    assert world.ask(role, "/livez")[0] == 200
    assert world.log(*role).count('"halted"') == 1
    assert end(sender) == 0
    world.broker.roles.remove(sender)

    group = "heliograph-sender-sms"
    world.run(*role, **env, HELIOGRAPH_DEAD_LETTERS__MAX_RATIO="1")
    until(lambda: not any(world.admin.group_offsets(group, [topic])[1].values()), what="the rest dead-lettered")
    world.broker.stop_roles()
    dead_letters = world.dead_letters(topic, "sender")
    assert len(dead_letters) == count
    assert set(dead_letters.values()) == {1}


def test_largest_record_that_a_topic_takes_fits_the_dead_letters(world: World) -> None:
    role, topic, group = ("router", "--lane", "critical"), requests_topic("critical"), router_group("critical")
    # A foreign producer may send what the broker takes; ours may not.
    foreign = confluent_kafka.Producer(
        {"bootstrap.servers": world.broker.bootstrap_servers, "message.max.bytes": 2_000_000}
    )
    foreign.produce(topic, key=b"big", value=POISON + os.urandom(1_048_000))
    assert foreign.flush(30) == 0
    world.run(*role, HELIOGRAPH_ROUTER__ENGINE="loop", HELIOGRAPH_DEAD_LETTERS__MAX_RATIO="1")
    until(lambda: not any(world.admin.group_offsets(group, [topic])[1].values()), what="it is dead-lettered")
    world.broker.stop_roles()
    dead_letters = [codec("DeadLetter").decode(r.value) for r in read_topic(world.broker.settings, DEAD_LETTERS)]
    assert [len(dead_letter["value"]) for dead_letter in dead_letters if dead_letter["key"] == b"big"] == [
        1_048_000 + len(POISON)
    ]
