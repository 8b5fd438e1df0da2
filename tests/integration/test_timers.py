"""The timers stage on a real broker: kills, rebalances, a schedule a month ahead."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any
from uuid import uuid4

import pytest

from processors.timers.role import Timers, create_timers
from runtime import ids
from runtime.kafka.producer import Producer
from runtime.process import Context
from runtime.records import ProducerRecord
from runtime.settings import Settings
from schemas.codec import DecodeError, codec
from schemas.topics import CANCELLATIONS, TIMERS, dispatch_topic, requests_topic
from tests.integration.conftest import broker, until
from tests.integration.pipeline import World, profiles, requests, world

pytestmark = pytest.mark.kafka
__all__ = ["broker", "world"]

MONTH_MS = 30 * 86_400_000
TARGET = requests_topic("bulk")  # no role of these tests reads it


def now() -> int:
    return time.time_ns() // 1_000_000


def timers(prefix: str, count: int, due_at: int) -> list[ProducerRecord]:
    """Timers due one millisecond after the other; the key of what they publish says which and when."""
    made = []
    for n in range(count):
        timer_id = str(uuid4())
        timer = {
            "timer_id": timer_id,
            "due_at": due_at + n,
            "purpose": "retry",
            "topic": TARGET,
            "key": f"{prefix}:{n}:{due_at + n}".encode(),
            "headers": [],
            "value": b"\0",
        }
        made.append(ProducerRecord(TIMERS, timer_id.encode(), codec("Timer").encode(timer)))
    return made


def fired(world: World, prefix: str) -> dict[str, list[int]]:
    """How many ms after its time each timer was published, every time it was."""
    found: dict[str, list[int]] = {}
    for record in world.read_all(TARGET):
        name, _, due_at = (record.key or b"").decode().rpartition(":")
        if name.startswith(f"{prefix}:"):
            found.setdefault(name, []).append(record.timestamp - int(due_at))
    return found


def pending(world: World) -> dict[bytes, dict[str, Any]]:
    """What the topic says is pending."""
    held: dict[bytes, bytes | None] = {}
    for record in world.read_all(TIMERS):
        held[record.key or b""] = record.value
    found = {}
    for key, value in held.items():
        try:
            found[key] = codec("Timer").decode(value)
        except DecodeError:
            continue  # a tombstone
    return found


@pytest.fixture
def in_process(world: World) -> Iterator[Callable[[Callable[[], int]], Timers]]:
    """The stage in a thread, on a clock of the test."""
    running: list[tuple[Context, Thread, Producer]] = []

    def start(clock: Callable[[], int]) -> Timers:
        context = Context("timers", Settings(kafka=world.broker.settings))
        producer = Producer(world.broker.settings, client_id="timers", linger_ms=1)
        stage = create_timers(context, producer, clock)
        thread = Thread(target=stage.run)
        thread.start()
        running.append((context, thread, producer))
        return stage

    yield start
    for context, thread, producer in running:
        context.stopping.set()
        thread.join(20)
        producer.close()
        assert not thread.is_alive()


def test_kill_between_firing_and_tombstone_fires_twice_and_the_tombstones_come_after_all(world: World) -> None:
    crashing = world.run("timers", HELIOGRAPH_CRASH_AT="after_fire")
    world.publish(timers("twice", 40, now()))
    assert crashing.wait(60) == -signal.SIGKILL
    assert any(fired(world, "twice").values())
    assert len(pending(world)) == 40
    world.run("timers")
    until(lambda: pending(world) == {}, what="every tombstone")
    world.broker.stop_roles()
    late = fired(world, "twice")
    assert len(late) == 40
    assert {len(times) for times in late.values()} <= {1, 2}
    assert 2 in {len(times) for times in late.values()}
    assert min(min(times) for times in late.values()) >= 0


@pytest.mark.parametrize("purpose", ["schedule", "retry"])
def test_what_fired_twice_is_sent_once(world: World, purpose: str) -> None:
    prefix, count = f"{purpose}-twice-", 8  # fewer failures than open the account's breaker
    world.publish(profiles(prefix, count))
    roles = (("router", "--lane", "normal"), ("sender", "--channel", "email"))
    for role in roles:
        world.run(*role)
    if purpose == "retry":
        world.fault(kind="smtp", mode="500", match=prefix, times=count)
        records, made = requests(prefix, count)
    else:
        records, made = requests(prefix, count, send_at=now() + 12_000)  # the router starts meanwhile
    world.publish(records)
    until(
        lambda: len(pending(world)) == count,
        what="a timer for each",
        found=lambda: (len(pending(world)), world.settled(made)),
    )
    crashing = world.run("timers", HELIOGRAPH_CRASH_AT="after_fire")
    crashing.wait(60)
    world.run("timers")
    until(lambda: list(world.settled(made).values()) == [{"sent"}] * count, what="every mail sent")
    until(lambda: pending(world) == {}, what="every tombstone")
    time.sleep(1)  # for a second mail to come, if there is one
    world.broker.stop_roles()
    world.clear_faults()
    assert world.accepted("smtp", prefix) == {f"{prefix}{n}@example.org": 1 for n in range(count)}
    topic = requests_topic("normal") if purpose == "schedule" else dispatch_topic("email", "normal")
    values = Counter(
        record.value for record in world.read_all(topic) if record.value and prefix.encode() in record.value
    )
    assert max(values.values()) == 2  # it did fire twice


def test_every_timer_fires_once_while_processes_come_and_go(world: World) -> None:
    world.run("timers")
    world.publish(timers("rebalance", 6_000, now() + 3_000))  # due over six seconds
    time.sleep(4)
    second = world.run("timers")  # takes half of the partitions in the middle
    time.sleep(3)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0
    until(lambda: pending(world) == {}, what="every tombstone")
    world.broker.stop_roles()
    late = fired(world, "rebalance")
    assert (len(late), {len(times) for times in late.values()}) == (6_000, {1})
    assert min(min(times) for times in late.values()) >= 0


def test_killed_owner_is_succeeded_and_nothing_stays_unfired(world: World) -> None:
    first = world.run("timers")
    world.run("timers")
    world.publish(timers("killed", 6_000, now() + 4_000))
    time.sleep(6)
    first.kill()
    first.wait()
    until(lambda: pending(world) == {}, what="every tombstone")
    world.broker.stop_roles()
    late = fired(world, "killed")
    assert len(late) == 6_000
    assert {len(times) for times in late.values()} <= {1, 2}
    assert min(min(times) for times in late.values()) >= 0


def test_largest_timer_that_kafka_takes_can_be_fired(world: World) -> None:
    (record,) = timers("large", 1, now())
    timer = codec("Timer").decode(record.value)
    value = random.Random(5).randbytes(1_048_576 - len(record.value or b"") - 150)  # does not compress
    world.publish([record._replace(value=codec("Timer").encode({**timer, "value": value}))])
    world.run("timers")
    until(lambda: pending(world) == {}, what="its tombstone")
    world.broker.stop_roles()
    assert list(fired(world, "large")) == ["large:0"]
    assert value in {record.value for record in world.read_all(TARGET)}


def test_schedule_a_month_ahead_survives_kills_of_router_and_timers_and_fires_in_its_time(
    world: World, in_process: Callable[[Callable[[], int]], Timers]
) -> None:
    world.publish(profiles("month-", 2))
    send_at = now() + MONTH_MS
    records, made = requests("month-", 2, send_at=send_at)
    world.publish(records)
    for _ in range(3):
        roles = [world.run("router", "--lane", "normal"), world.run("timers")]
        until(lambda: len(pending(world)) == 2, what="the timers")
        time.sleep(3)
        for role in roles:
            role.kill()
            role.wait()
    wanted = {ids.timer_id(nid, "schedule").encode(): send_at for nid in made}
    assert {key: timer["due_at"] for key, timer in pending(world).items()} == wanted

    clock = [send_at - 1]
    stage = in_process(lambda: clock[0])
    until(lambda: sum(len(heap) for heap in list(stage._heaps.values()) if heap.ordered) == 2, what="read in process")
    time.sleep(1)
    assert len(pending(world)) == 2
    clock[0] = send_at
    until(lambda: pending(world) == {}, what="fired")
    back = [
        codec("NotificationRequest").decode(r.value)
        for r in world.read_all(requests_topic("normal"))
        if r.value and b"month-" in r.value
    ]
    assert Counter(r["notification_id"] for r in back if r["send_at"] is None) == dict.fromkeys(made, 1)


def test_cancelled_month_ahead_ends_at_once_and_its_timer_with_it(world: World) -> None:
    world.publish(profiles("wish-", 2))
    roles = [world.run("router", "--lane", "normal"), world.run("timers")]
    records, made = requests("wish-", 2, send_at=now() + MONTH_MS)
    world.publish(records)
    until(lambda: len(pending(world)) == 2, what="the timers")
    cancelled, kept = sorted(made)
    roles[1].kill()  # the wish comes while nobody reads it
    roles[1].wait()
    cancellation = codec("Cancellation").encode({"notification_id": cancelled, "tenant": "t", "requested_at": now()})
    world.publish([ProducerRecord(CANCELLATIONS, cancelled.encode(), cancellation)])
    world.run("timers")
    until(lambda: world.settled(made).get(cancelled) == {"cancelled"}, what="cancelled")
    until(lambda: len(pending(world)) == 1, what="its tombstone")
    world.broker.stop_roles()
    assert [s["state"] for s in world.statuses(made)[kept]] == ["scheduled"]
    assert list(pending(world)) == [ids.timer_id(kept, "schedule").encode()]
    world.publish([ProducerRecord(TIMERS, key, None) for key in pending(world)])
