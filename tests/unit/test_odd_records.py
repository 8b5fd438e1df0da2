"""Positions, unreadable header names, and views that never lie: the parts of reading that need no broker to be shown."""

from __future__ import annotations

import errno
import hashlib
import inspect
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.transport.drivers.aiokafka import Consumer as FaustConsumer

from processors.router.app import DrainingConsumer, create_app
from processors.router.tolerant import TolerantRecords
from runtime import views
from runtime.clock import Monotonic, system_monotonic
from runtime.kafka import consumer as kafka_consumer
from runtime.kafka.client import Partition
from runtime.kafka.consumer import CommitError, Consumer, FencedError
from runtime.lag import _measured, unread
from runtime.records import ConsumerRecord
from runtime.settings import KafkaSettings, Settings
from runtime.stores import MemoryStore
from runtime.views import MAX_SKEW_MS, View, is_older
from schemas.codec import codec, iter_examples
from schemas.topics import RECIPIENTS, SUPPRESSIONS, TEMPLATES
from tests.support.batches import CODECS, Codec, Raw, batch
from tests.unit.test_consumer import Message

HERE: Partition = ("t", 0)

# -- positions --------------------------------------------------------------------------------------------------------


class End:
    """What librdkafka says in a message's place where a partition ends."""

    def __init__(self, offset: int, code: int = KafkaError._PARTITION_EOF) -> None:
        self._offset, self._error = offset, KafkaError(code)

    def error(self) -> KafkaError:
        return self._error

    def topic(self) -> str:
        return "t"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset


class Library:
    """librdkafka's consumer: what it gives in each call, and what it says to a commit."""

    def __init__(self, *polls: list[Any]) -> None:
        self.polls = [*polls]
        self.refuses: int | None = None

    def assign(self, partitions: list[Any]) -> None:
        pass

    def poll(self, timeout_s: float) -> Any:
        self.now = self.polls.pop(0) if self.polls else []
        return self.now.pop(0) if self.now else None

    def consume(self, count: int, timeout_s: float) -> list[Any]:
        return self.now

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        """The end of each."""
        assert [it.offset for it in partitions] == [-1]
        return [TopicPartition(*HERE, 7)]

    def commit(self, offsets: list[Any], asynchronous: bool) -> list[Any]:
        if self.refuses is not None:
            raise KafkaException(KafkaError(self.refuses))
        return offsets


def consumer(library: Library, start: int = 6, monotonic: Monotonic = system_monotonic) -> Consumer:
    made = Consumer(
        KafkaSettings(), client_id="test", group=None, detect_eof=True, monotonic=monotonic, library=lambda _: library
    )
    made.assign({HERE: start})
    return made


def test_end_of_a_partition_is_reached_past_offsets_without_a_record() -> None:
    one = consumer(Library([Message(6), Message(7), End(9)]))
    assert [record.offset for record in one.consume(10, 1)] == [6, 7]
    assert one.progress() == {HERE: 9}
    assert one.position(HERE) == 9
    assert one.eof_partitions == {HERE}
    one.commit(one.progress())
    assert one.progress() == {}


def test_a_marker_alone_moves_the_position_and_silence_after_it_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    one = consumer(Library([End(7)]), monotonic=lambda: now[0])
    assert one.consume(10, 1) == []
    assert one.progress() == {HERE: 7}
    monkeypatch.setattr(kafka_consumer.os, "_exit", lambda code: pytest.fail(f"ended with {code}"))  # type: ignore[attr-defined]
    while now[0] < 100:
        assert one.consume(10, 1) == []
        now[0] += 1
    assert one.current_at > 80


def test_records_that_are_not_fetched_still_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def ended(code: int) -> None:
        raise Ended(code)

    now = [0.0]
    one = consumer(Library(), monotonic=lambda: now[0])
    monkeypatch.setattr(kafka_consumer.os, "_exit", ended)  # type: ignore[attr-defined]
    with pytest.raises(Ended):
        while now[0] < 100:
            one.consume(10, 1)
            now[0] += 1


def test_nothing_is_offered_for_a_commit_between_a_fence_and_the_next_assignment() -> None:
    library = Library([Message(6), End(7)], [Message(7), End(8)])
    one: Any = consumer(library)
    one.consume(10, 1)
    library.refuses = KafkaError.REQUEST_TIMED_OUT
    with pytest.raises(CommitError):
        one.commit({HERE: 7})
    assert one.progress() == {HERE: 7}
    library.refuses = KafkaError.ILLEGAL_GENERATION
    with pytest.raises(FencedError):
        one.commit({HERE: 7})
    assert one.progress() == {}
    one.consume(10, 1)
    assert one.progress() == {}
    one._assigned({HERE: 6})
    assert one.progress() == {}


class Cluster:
    """Offsets of a group, and where a record is."""

    def __init__(self, committed: int, end: int, *, record: bool) -> None:
        self.committed, self.end, self.record, self.asked = committed, end, record, 0

    def group_offsets(self, *_: Any) -> tuple[dict[Partition, int], dict[Partition, int]]:
        return {HERE: self.committed}, {HERE: self.end - self.committed}

    def with_records(self, places: dict[Partition, int]) -> set[Partition]:
        self.asked += 1
        return set(places) if self.record else set()


@pytest.mark.parametrize(("record", "lag"), [(True, 1), (False, 0)])
def test_group_at_a_transaction_marker_has_no_lag(record: bool, lag: int) -> None:
    cluster: Any = Cluster(6, 7, record=record)
    assert unread(cluster, *cluster.group_offsets()) == {HERE: lag}
    assert _measured(cluster, "g", ["t"], {HERE: 6}) == ({HERE: 6}, {HERE: lag})
    asked = cluster.asked
    assert _measured(cluster, "g", ["t"], {HERE: 5}) == ({HERE: 6}, {HERE: 1})  # it moves: nobody looks
    assert cluster.asked == asked


# -- header names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", CODECS)
def test_a_header_name_that_is_no_text_costs_its_record_the_headers_and_its_neighbours_nothing(
    compressed: Codec,
) -> None:
    fine = Raw(b"a", b"1", [(b"x", b"1"), ("ü".encode(), None)])
    records = [
        fine,
        Raw(None, None, [(b"x", b"1"), (b"\xff", b"1")], 1),
        fine,
        Raw(b"d", b"4", [(b"\xc3", None)]),
        fine,
    ]
    found = TolerantRecords(batch(records, compressed) + batch([fine], compressed))
    read = []
    while found.has_next():
        one = found.next_batch()
        assert one.validate_crc()
        assert not one.is_control_batch
        read.append([(r.offset, r.key, r.value, r.headers) for r in one])
    kept = [("x", b"1"), ("ü", None)]
    assert read == [
        [(0, b"a", b"1", kept), (1, None, None, []), (2, b"a", b"1", kept), (3, b"d", b"4", []), (4, b"a", b"1", kept)],
        [(0, b"a", b"1", kept)],
    ]
    with pytest.raises(UnicodeDecodeError):  # which is why
        list(MemoryRecords(batch(records, compressed)).next_batch() or ())


@pytest.mark.parametrize(
    ("method", "digest"),
    [
        (fetcher.PartitionRecords._unpack_records, "b803e6d46480732c"),
        (fetcher.PartitionRecords._contains_abort_marker, "17e9ad2322ef4e0a"),
        (fetcher.Fetcher._proc_fetch_request, "59bf948fff47eed5"),
        (_DefaultRecordBatchPy._read_msg, "0997ab7a58505c93"),
        (_DefaultRecordBatchPy._maybe_uncompress, "c9d0dc2bed50cc86"),
        (_DefaultRecordBatchPy.__next__, "d05784bae3cbcfb9"),
        (AIOKafkaConsumerThread._create_worker_consumer, "c2701bfc3e6f6cad"),
        (FaustConsumer._new_consumer_thread, "0870ec53dea75083"),
    ],
)
def test_library_code_that_is_read_around_is_the_one_it_was_written_for(
    method: Callable[..., Any], digest: str
) -> None:
    source = inspect.getsource(method)
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, (
        f"{method.__qualname__} changed: compare processors/router/tolerant.py and processors/router/app.py with it before pinning anew"
    )


async def test_the_faust_router_reads_what_is_committed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("aiokafka.AIOKafkaConsumer", lambda **options: asked.update(options))
    app = create_app(Settings(), "normal")
    callbacks = dict.fromkeys(("callback", "on_partitions_revoked", "on_partitions_assigned"), AsyncMock())
    made: Any = DrainingConsumer(app.transport, **callbacks)
    made._thread._create_worker_consumer(app.transport)
    assert asked["isolation_level"] == "read_committed"
    assert made.in_transaction is False
    made._thread.thread_loop.close()
    assert fetcher.MemoryRecords is TolerantRecords


# -- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("?"), RecursionError()])
def test_a_view_that_cannot_read_says_so_whatever_kept_it_from_it_and_comes_back(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    view: Any = View(KafkaSettings(), SUPPRESSIONS)
    failing = [True]

    def read() -> None:
        view._reason = None  # caught up
        if failing[0]:
            raise error
        view._closed.wait(5)

    view._read = read
    view.start()
    try:
        _until(lambda: type(error).__name__ in (view.not_ready() or ""))
        assert view._thread.is_alive()
        failing[0] = False
        _until(lambda: view.not_ready() is None)
        assert view.age_s() < 60
    finally:
        view.close()


def test_a_view_whose_reader_is_gone_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    view: Any = View(KafkaSettings(), SUPPRESSIONS)

    def read() -> None:
        view._reason = None
        raise SystemExit  # as nothing else ends it

    view._read = read
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    view.start()
    view._thread.join(5)
    assert view.not_ready() == "its reader has ended"


def _until(condition: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


PROFILE = next(record for _, _, name, record in iter_examples() if name == "RecipientProfile")
TEMPLATE = next(record for _, _, name, record in iter_examples() if name == "Template")


@pytest.mark.parametrize(
    ("topic", "example", "kind"), [(RECIPIENTS, PROFILE, "RecipientProfile"), (TEMPLATES, TEMPLATE, "Template")]
)
def test_an_older_value_published_late_does_not_win(topic: str, example: dict[str, Any], kind: Any) -> None:
    view: View[Any] = View(KafkaSettings(), topic)

    def put(version: int, updated_at: int) -> int:
        value = codec(kind).encode({**example, "version": version, "updated_at": updated_at})
        assert view.apply([ConsumerRecord(topic, 0, 0, 0, b"k", value)]) == []
        return int((view.get("k") or {})["updated_at"])

    now = 1_800_000_000_000
    assert put(3, now) == now
    assert put(2, now - 5_000) == now  # late
    assert put(9, now - MAX_SKEW_MS - 1) == now  # late by more than clocks differ
    assert put(4, now - 5) == now - 5  # another clock
    assert put(1, now + 9) == now + 9  # made anew, or an older version published again
    view.apply([ConsumerRecord(topic, 0, 0, 0, b"k", None)])
    assert put(1, now - MAX_SKEW_MS * 2) == now - MAX_SKEW_MS * 2


def test_equal_states_are_not_older() -> None:
    state = {"version": 1, "updated_at": 5}
    assert not is_older(state, state)


def test_a_record_that_its_filter_cannot_judge_is_one_letter_and_the_view_goes_on() -> None:
    view: View[Any] = View(KafkaSettings(), RECIPIENTS, keep=lambda record: bool(record["user_id"][0] == "u"))
    values = [codec("RecipientProfile").encode({**PROFILE, "user_id": user}) for user in ("", "u1")]
    dead_letters = view.apply(
        [ConsumerRecord(RECIPIENTS, 0, n, 0, b"k%d" % n, value) for n, value in enumerate(values)]
    )
    assert [codec("DeadLetter").decode(r.value)["reason"] for r in dead_letters] == ["internal_error"]
    assert "k1" in view


def test_a_view_that_starts_over_in_its_process_goes_on_where_it_was() -> None:
    store = MemoryStore()
    store.put(b"k", b"v")
    store.commit({0: 7}, 1_000)
    assert store.positions() == ({0: 7}, 1_000)
    store.clear()
    assert store.positions() == ({}, 0)
    assert views.MAX_POSITION_AGE_MS > 0
