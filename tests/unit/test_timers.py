"""The heap against a model, and the timers stage on topics, a producer and a clock that do as they are told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors.groups import TIMERS_GROUP
from processors.timers.heap import Heap, MemoryBudget
from processors.timers.role import CANCEL_BEFORE_MS, LEASE_S, MAX_BUFFERED_BYTES, Timers
from processors.timers.values import TIMEOUT_S
from runtime import ids
from runtime.errors import PublishError
from runtime.process import Context
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import Settings
from schemas.codec import DecodeError, codec
from schemas.topics import CANCELLATIONS, DEAD_LETTERS, STATUS, TIMERS, dispatch_topic, requests_topic
from tests.support.broker import MemoryBroker

HOUR = 3_600_000
NOW = 1_790_000_000_000
REQUESTS = requests_topic("normal")
DISPATCH = dispatch_topic("email", "normal")


# -- heap ------------------------------------------------------------------------------------------------------------


def test_timers_come_up_in_order_once_and_never_early() -> None:
    heap = Heap()
    heap.order()
    for offset, (key, due) in enumerate(((b"c", 30), (b"a", 10), (b"b", 20), (b"a", 40))):
        heap.put(key, due, offset, key)
    heap.drop(b"b")
    assert heap.due(9, 10) == []
    assert heap.due(35, 10) == [(30, 0, b"c", b"c")]
    heap.drop(b"c")
    assert heap.due(100, 10) == [(40, 3, b"a", b"a")]
    heap.drop(b"a")
    assert (heap.due(100, 10), len(heap), heap.next_due()) == ([], 0, None)


@given(
    st.lists(st.tuples(st.sampled_from("pdf"), st.integers(0, 5), st.integers(0, 50)), max_size=80), st.integers(0, 80)
)
def test_heap_is_a_sorted_map(steps: list[tuple[str, int, int]], read_until: int) -> None:
    heap, model = Heap(), dict[bytes, tuple[int, int, bytes, bytes]]()
    for offset, (what, number, time) in enumerate(steps):
        key = b"%d" % number
        if offset == read_until:
            heap.order()
        if what == "p":
            heap.put(key, time, offset, b"v")
            model[key] = (time, offset, key, b"v")
        elif what == "d":
            heap.drop(key)
            model.pop(key, None)
        elif heap.ordered:
            wanted = sorted(entry for entry in model.values() if entry[0] <= time)[:3]
            assert heap.due(time, 3) == wanted
            for entry in wanted:
                heap.drop(entry[2])
                del model[entry[2]]
        assert len(heap) == len(model)
    heap.order()
    assert heap.due(100, 1_000) == sorted(model.values())


def test_replaced_and_dropped_timers_do_not_stay_in_memory_until_their_time() -> None:
    heap = Heap()
    heap.order()
    for offset in range(20_000):
        heap.put(b"%d" % (offset % 100), NOW + offset, offset, bytes(100))
    assert len(heap._order or ()) <= 1_200
    for number in range(99):
        heap.drop(b"%d" % number)
    for offset in range(20_000, 40_000):
        heap.put(b"x%d" % offset, NOW, offset, bytes(100))
        heap.drop(b"x%d" % offset)
    assert len(heap._order or ()) <= 1_002
    assert [entry[2] for entry in heap.due(NOW + 40_000, 10)] == [b"99"]


# -- head ------------------------------------------------------------------------------------------------------------


def timer(
    due_at: int = NOW,
    *,
    topic: str = REQUESTS,
    value: bytes = b"v",
    purpose: str = "retry",
    timer_id: str | None = None,
) -> dict[str, Any]:
    return {
        "timer_id": timer_id or str(uuid4()),
        "due_at": due_at,
        "purpose": purpose,
        "topic": topic,
        "key": b"t:u",
        "headers": [{"name": "ce_id", "value": b"1"}],
        "value": value,
    }


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.text(max_size=40), st.text(max_size=200))
def test_head_is_what_the_whole_says(due_at: int, topic: str, purpose: str) -> None:
    record = timer(due_at, topic=topic, purpose=purpose)
    raw = codec("Timer").encode(record)
    head = codec("Timer").head_decoder(4)(raw)
    assert head == {name: record[name] for name in ("timer_id", "due_at", "purpose", "topic")}


def test_head_of_any_bytes_is_a_head_or_a_decode_error() -> None:
    rng, decode = random.Random(3), codec("Timer").head_decoder(4)
    whole = codec("Timer").encode(timer())
    for cut in range(len(whole)):
        try:
            decode(whole[:cut])
        except DecodeError:
            continue
        assert cut > 5 + 37 + 6
    for _ in range(5_000):
        changed = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            decode(bytes(changed))
        except DecodeError:
            continue
    for raw in (None, b"", b"\0\0\0\0\xff" + whole[5:], whole + bytes(1 << 20)):
        with pytest.raises(DecodeError):
            decode(raw)


# -- the stage -------------------------------------------------------------------------------------------------------


class World:
    """The stage on a broker in memory, and what it published. The group is the test's."""

    def __init__(self, buffered_bytes: int = MAX_BUFFERED_BYTES, broker: MemoryBroker | None = None) -> None:
        self.now = NOW
        self.elapsed_s: Iterator[float] = itertools.repeat(0.0)
        """What the monotonic clock says, look by look."""
        self.broker = broker or MemoryBroker()
        if broker is None:
            for topic in (TIMERS, CANCELLATIONS, STATUS, DEAD_LETTERS, REQUESTS, DISPATCH):
                self.broker.create(topic, 4)
        self.broker.before_publish = self._publishing
        self.refuses: str | None = None
        """A topic that acknowledges nothing."""
        self._began = len(self.broker.published)
        self.consumer = self.broker.consumer(TIMERS_GROUP, detect_eof=True)
        self.stage = Timers(
            Context("timers", Settings()),
            self.broker.producer(),
            consumer=self.consumer,
            cancellations=self.broker.consumer(),
            again=self.broker.consumer(detect_eof=True),
            clock=lambda: self.now,
            monotonic=lambda: next(self.elapsed_s),
            buffered_bytes=buffered_bytes,
        )
        self.stage.join()
        self.give()

    def _publishing(self, records: Sequence[ProducerRecord]) -> None:
        if any(record.topic == self.refuses for record in records):
            raise PublishError("the broker did not acknowledge")

    @property
    def published(self) -> list[ProducerRecord]:
        return self.broker.published[self._began :]

    def give(self, *numbers: int) -> None:
        """These partitions from the next turn on; what was held is revoked first."""
        self.broker.give(self.consumer, [(TIMERS, number) for number in numbers])

    def lose(self) -> None:
        """Every partition, to somebody else."""
        self.give()
        self.broker.expire(self.consumer, stopped=True)

    def successor(self) -> World:
        """Another process in the place of this one."""
        self.broker.expire(self.consumer, stopped=True)
        return World(broker=self.broker)

    def write(self, topic: str, number: int, key: bytes | None, value: bytes | None) -> ConsumerRecord:
        return self.broker.append(ProducerRecord(topic, key, value, partition=number))

    def put(self, due_at: int, number: int = 0, **fields: Any) -> bytes:
        record = timer(due_at, **fields)
        key: bytes = record["timer_id"].encode()
        self.write(TIMERS, number, key, codec("Timer").encode(record))
        return key

    def schedule(self, due_at: int, tenant: str = "t") -> str:
        nid = ids.notification_id(NOW, tenant)
        request = {"notification_id": nid, "tenant": tenant, "accepted_at": NOW, "user_id": "u", "template_id": "x"}
        value = codec("NotificationRequest").encode(request)
        self.put(due_at, purpose="schedule", value=value, timer_id=ids.timer_id(nid, "schedule"))
        return nid

    def cancel(self, nid: str, tenant: str = "t") -> None:
        cancellation = codec("Cancellation").encode({"notification_id": nid, "tenant": tenant, "requested_at": NOW})
        self.write(CANCELLATIONS, 0, nid.encode(), cancellation)

    def turn(self) -> list[ProducerRecord]:
        before = len(self.published)
        self.stage.run_once()
        return self.published[before:]

    def topics(self) -> list[str]:
        return [record.topic for record in self.turn()]

    @property
    def pending(self) -> int:
        return sum(len(heap) for heap in self.stage._heaps.values())


@pytest.fixture(params=[MAX_BUFFERED_BYTES, 0], ids=["held", "read again"])
def world(request: pytest.FixtureRequest) -> World:
    """With every record in memory, and with none."""
    return World(request.param)


def test_timer_fires_with_its_headers_and_then_gets_its_tombstone(world: World) -> None:
    key = world.put(NOW + 1)
    world.give(0, 1)
    assert world.turn() == []
    world.now += 1
    assert world.turn() == [
        ProducerRecord(REQUESTS, b"t:u", b"v", [("ce_id", b"1")]),
        ProducerRecord(TIMERS, key, None, partition=0),
    ]
    assert (world.pending, world.turn()) == (0, [])


def test_nothing_fires_before_the_end_of_its_partition_was_reached(world: World) -> None:
    ended = world.put(NOW - HOUR)
    world.write(TIMERS, 0, ended, None)
    world.give(0)
    world.broker.at_once = 1
    assert (world.turn(), world.pending) == ([], 1)
    assert (world.turn(), world.pending) == ([], 0)


def test_clock_that_jumps_back_fires_nothing_early_and_one_that_jumps_forward_fires(world: World) -> None:
    world.put(NOW + 1_000)
    world.give(0)
    world.now = NOW - HOUR
    assert world.turn() == []
    world.now = NOW + 999 - HOUR
    assert (world.turn(), world.stage._wait_s()) == ([], 0.1)
    world.now = NOW + 999
    assert (world.turn(), world.stage._wait_s()) == ([], 0.001)
    world.now = NOW + HOUR
    assert world.topics() == [REQUESTS, TIMERS]
    world.put(NOW + HOUR + 500)
    world.now = NOW  # back again, after it has fired
    assert world.turn() == []
    world.now = NOW + HOUR + 500
    assert world.topics() == [REQUESTS, TIMERS]


def test_random_walk_of_the_clock_never_fires_early_and_in_the_end_everything_once(world: World) -> None:
    rng = random.Random(11)
    world.give(0, 1, 2, 3)
    due: dict[bytes, int] = {}
    for number in range(200):
        at = NOW + rng.randrange(-HOUR, 2 * HOUR)
        due[world.put(at, number % 4, value=b"%d" % at)] = at
    for _ in range(300):
        world.now += rng.choice([1, 50, 1_000, 60_000, HOUR, -HOUR, -60_000])
        assert all(int(r.value or b"0") <= world.now for r in world.turn() if r.topic == REQUESTS)
    world.now = NOW + 3 * HOUR
    world.turn()
    fired = sorted(int(record.value or b"") for record in world.published if record.topic == REQUESTS)
    assert fired == sorted(due.values())
    assert sorted(r.key or b"" for r in world.published if r.topic == TIMERS) == sorted(due)


def test_timer_whose_target_is_not_acknowledged_gets_no_tombstone(world: World) -> None:
    world.put(NOW)
    world.give(0)
    world.refuses = REQUESTS
    with pytest.raises(PublishError):
        world.turn()
    assert (world.published, world.pending) == ([], 1)
    successor = world.successor()
    successor.give(0)
    assert successor.topics() == [REQUESTS, TIMERS]


def test_death_between_firing_and_tombstone_fires_again(world: World) -> None:
    world.put(NOW)
    world.give(0)
    world.refuses = TIMERS
    with pytest.raises(PublishError):
        world.turn()
    successor = world.successor()
    successor.give(0)
    assert [r[:3] for r in world.published] == [r[:3] for r in successor.turn()[:1]]


def test_rebalance_reads_on_what_stays_and_forgets_what_goes(world: World) -> None:
    for number in (0, 1):
        for n in range(10):
            world.put(NOW + 1_000 + n, number)
    world.give(0, 1)
    world.turn()
    read = world.broker.handed_out
    ended = world.broker.log((TIMERS, 0)).records()[0].key
    world.write(TIMERS, 0, ended, None)  # by another owner, in between
    world.give(0)
    assert (world.turn(), world.pending, world.broker.handed_out) == ([], 9, read + 1)
    world.now += 2_000
    assert world.topics() == [REQUESTS] * 9 + [TIMERS] * 9


def test_partitions_that_were_lost_are_read_again_from_the_beginning(world: World) -> None:
    world.put(NOW + 1_000)
    world.give(0)
    world.turn()
    world.lose()
    world.now += 2_000
    assert world.turn() == []
    world.broker.drop((TIMERS, 0), [0])  # compacted away meanwhile, tombstone and all
    world.give(0)
    assert (world.turn(), world.pending) == ([], 0)


def test_owner_that_stood_still_asks_the_group_before_it_fires(world: World) -> None:
    world.put(NOW)
    world.give(0)
    world.elapsed_s = itertools.chain([0.0], itertools.repeat(LEASE_S + 0.1))  # between the poll and the first look
    assert world.turn() == []
    assert world.topics() == [REQUESTS, TIMERS]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"k", b"\xff poison"),
        (b"k", codec("Timer").encode(timer(timer_id="k", topic="notify.status.v1"))),
        (b"k", codec("Timer").encode(timer(timer_id="k", topic="notify.requests.nowhere.v1"))),
        (b"k", codec("Timer").encode(timer(timer_id="other"))),
        (None, b"\xff poison"),
    ],
)
def test_poison_is_dead_lettered_when_it_is_read(world: World, key: bytes | None, value: bytes) -> None:
    world.write(TIMERS, 0, key, value)
    world.put(NOW)
    world.give(0)
    dead_letter, *rest = world.turn()
    assert dead_letter.topic == DEAD_LETTERS
    assert codec("DeadLetter").decode(dead_letter.value)["value"] == value
    assert [r.topic for r in rest] == [*([TIMERS] if key else []), REQUESTS, TIMERS]


def test_poison_behind_a_good_head_is_dead_lettered_when_it_fires(world: World) -> None:
    record = timer(NOW + 5)
    raw = codec("Timer").encode(record)[:-3]
    world.write(TIMERS, 0, record["timer_id"].encode(), raw)
    world.put(NOW + 5)
    world.give(0)
    assert world.turn() == []
    world.now += 5
    out = world.turn()
    assert [r.topic for r in out] == [DEAD_LETTERS, REQUESTS, TIMERS, TIMERS]
    dead_letter = codec("DeadLetter").decode(out[0].value)
    assert (dead_letter["value"], dead_letter["offset"], dead_letter["reason"]) == (raw, 0, "undecodable")
    assert world.pending == 0


def test_a_good_timer_that_follows_an_unreadable_one_of_its_key_is_spared(world: World) -> None:
    good = timer(NOW + 1_000)
    key = good["timer_id"].encode()
    world.write(TIMERS, 0, key, b"\xff poison")
    world.write(TIMERS, 0, key, codec("Timer").encode(good))
    world.give(0)
    assert world.topics() == [DEAD_LETTERS]
    successor = world.successor()
    successor.now += 2_000
    successor.give(0)
    assert REQUESTS in successor.topics()


def test_nothing_is_cleared_away_before_the_end_of_the_partition_was_reached(world: World) -> None:
    good = timer(NOW)
    key = good["timer_id"].encode()
    world.write(TIMERS, 0, key, b"\xff poison")
    world.write(TIMERS, 0, key, codec("Timer").encode(good))
    world.give(0)
    world.broker.at_once = 1
    assert world.topics() == [DEAD_LETTERS]
    world.broker.at_once = 2
    assert [record.topic for record in world.turn() if record.value is not None][-1] == REQUESTS


def test_an_empty_partition_that_comes_back_is_not_read_again(world: World) -> None:
    world.give(0)
    world.turn()
    empty = world.stage._heaps[TIMERS, 0]
    assert empty.ordered
    world.give(0)
    world.turn()
    assert world.stage._heaps[TIMERS, 0] is empty
    assert world.stage._not_ready() is None


def test_what_kafka_refuses_for_its_size_is_dead_lettered_and_the_others_fire(world: World) -> None:
    world.put(NOW, value=bytes(5_000))
    world.put(NOW)
    world.broker.limit(REQUESTS, 1_000)
    world.give(0)
    out = world.turn()
    assert [record.topic for record in out] == [REQUESTS, DEAD_LETTERS, TIMERS, TIMERS]
    dead_letter = codec("DeadLetter").decode(out[1].value)
    assert (dead_letter["topic"], dead_letter["error_class"]) == (TIMERS, "TooLargeError")
    assert (world.pending, world.turn()) == (0, [])


@pytest.mark.parametrize("due_at", [-(1 << 63), -1, 0, 1, NOW + 1, (1 << 63) - 1])
@pytest.mark.parametrize("name", ["", "\0", "\r\n", "x" * 70_000])
def test_a_hostile_timer_fires_or_waits_and_stops_nobody(world: World, due_at: int, name: str) -> None:
    record = {**timer(due_at), "headers": [{"name": name, "value": b""}]}
    world.write(TIMERS, 0, record["timer_id"].encode(), codec("Timer").encode(record))
    world.put(NOW)
    world.give(0)
    assert world.topics() == ([REQUESTS, REQUESTS, TIMERS, TIMERS] if due_at <= NOW else [REQUESTS, TIMERS])


def test_what_is_held_stays_within_its_bytes_whatever_comes_and_goes() -> None:
    budget = MemoryBudget(10_000)
    heaps = [Heap(budget), Heap(budget)]
    rng = random.Random(7)
    for heap in heaps:
        heap.order()
    for offset in range(5_000):
        heap, key = rng.choice(heaps), b"%d" % rng.randrange(200)
        if rng.random() < 0.7:
            heap.put(key, rng.randrange(1_000), offset, bytes(rng.randrange(500)))
        elif rng.random() < 0.5:
            heap.drop(key)
        else:
            for entry in heap.due(rng.randrange(1_000), 20, max_bytes=2_000):
                heap.drop(entry[2])
        held = [e[3] for h in heaps for e in h._pending.values() if isinstance(e[3], bytes)]
        assert budget.used == sum(map(len, held)) <= budget.limit
        in_order = {id(e): e[3] for h in heaps for e in h._order or () if isinstance(e[3], bytes)}
        assert sum(map(len, in_order.values())) <= 3 * budget.limit
    for heap in heaps:
        heap.clear()
    assert budget.used == 0


def test_a_timer_that_cannot_be_read_again_comes_up_again() -> None:
    world = World(buffered_bytes=0)
    world.put(NOW + 1)
    world.give(0)
    world.turn()
    world.now += 1
    world.broker.silent, world.elapsed_s = True, itertools.chain([0.0, 0.0], itertools.count(0.0, TIMEOUT_S))
    assert (world.turn(), world.pending) == ([], 1)
    world.broker.silent, world.elapsed_s = False, itertools.repeat(0.0)
    assert world.topics() == [REQUESTS, TIMERS]


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_cancelled_schedule_ends_at_once_with_a_fact_and_a_tombstone(world: World) -> None:
    nid = world.schedule(NOW + 30 * 24 * HOUR)
    world.schedule(NOW + 30 * 24 * HOUR)
    world.give(0)
    assert world.turn() == []
    world.cancel(nid)
    fact, tombstone = world.turn()
    status = codec("DeliveryStatus").decode(fact.value)
    assert (fact.topic, status["notification_id"], status["state"], status["reason"], status["lane"]) == (
        STATUS,
        nid,
        "cancelled",
        "by_caller",
        "normal",
    )
    assert status["event_id"] == ids.event_id(nid, "cancelled")  # the router's own would be the same fact
    assert tombstone == ProducerRecord(TIMERS, ids.timer_id(nid, "schedule").encode(), None, partition=0)
    assert (world.pending, world.turn()) == (1, [])


def test_schedule_that_arrives_after_its_cancellation_ends_too(world: World) -> None:
    world.give(0)
    nid = ids.notification_id(NOW, "t")
    world.cancel(nid)
    assert world.turn() == []
    request = {"notification_id": nid, "tenant": "t", "accepted_at": NOW, "user_id": "u", "template_id": "x"}
    value = codec("NotificationRequest").encode(request)
    world.put(NOW + HOUR, purpose="schedule", value=value, timer_id=ids.timer_id(nid, "schedule"))
    assert (world.topics(), world.pending) == ([STATUS, TIMERS], 0)


def test_every_cancellation_is_looked_at_again_after_a_takeover(world: World) -> None:
    nid = world.schedule(NOW + HOUR)
    world.cancel(nid)
    world.give(1)
    assert world.turn() == []
    world.give(0, 1)
    assert (world.topics(), world.pending) == ([STATUS, TIMERS], 0)


def test_schedule_about_to_fire_is_left_to_the_router(world: World) -> None:
    nid = world.schedule(NOW + CANCEL_BEFORE_MS)
    world.give(0)
    world.cancel(nid)
    assert world.turn() == []
    world.now += CANCEL_BEFORE_MS
    assert world.topics() == [REQUESTS, TIMERS]


def test_schedule_that_is_none_of_a_request_is_not_cancelled(world: World) -> None:
    nid = ids.notification_id(NOW, "t")
    request = {"notification_id": nid, "tenant": "t", "accepted_at": NOW, "user_id": "u", "template_id": "x"}
    value = codec("NotificationRequest").encode(request)
    for purpose, topic, body in (
        ("retry", REQUESTS, value),
        ("schedule", DISPATCH, value),
        ("schedule", REQUESTS, b"\xff"),
    ):
        world.put(NOW + HOUR, purpose=purpose, topic=topic, value=body, timer_id=ids.timer_id(nid, "schedule"))
    world.give(0)
    world.cancel(nid)
    for _ in range(3):
        assert (world.turn(), world.pending) == ([], 1)
        world.broker.drop((TIMERS, 0), [len(world.broker.log((TIMERS, 0)).records()) - 1])
        world.lose()
        world.give(0)


def test_another_tenant_cancels_nothing(world: World) -> None:
    nid = world.schedule(NOW + HOUR)
    world.give(0)
    world.cancel(nid, tenant="other")
    world.write(CANCELLATIONS, 0, b"k", b"\xff poison")
    world.write(CANCELLATIONS, 0, nid.encode(), None)
    assert (world.turn(), world.pending) == ([], 1)


def test_cancelled_without_the_fact_acknowledged_stays_pending(world: World) -> None:
    nid = world.schedule(NOW + HOUR)
    world.give(0)
    world.cancel(nid)
    world.refuses = STATUS
    with pytest.raises(PublishError):
        world.turn()
    assert (world.published, world.pending) == ([], 1)
