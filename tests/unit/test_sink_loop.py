"""The sink's order of doing things, with a consumer, a producer and a store that fail on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from processors.router.intake import decode_request
from runtime.errors import PublishError, UnavailableError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import CommitError, Consumer, FencedError
from runtime.kafka.producer import Producer
from runtime.process import Context
from runtime.records import ConsumerRecord, PartitionBatch, ProducerRecord, group_by_partition
from runtime.settings import DeadLetterSettings, Settings, SinkSettings
from schemas.codec import DecodeError, codec
from schemas.topics import DEAD_LETTERS, STATUS, requests_topic
from sinks import batching, clickhouse, role, schema
from sinks.role import Sink
from sinks.rows import SOURCES, row_of
from tests.unit.test_rows import request

TOPIC = requests_topic("normal")
HOME: Partition = (TOPIC, 0)


class FakeKafka:
    """A consumer and a producer that follow a script and write down what they are asked."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.script: list[Callable[[], list[ConsumerRecord]]] = []
        self.log: list[str] = []
        self.commits: list[dict[Partition, int]] = []
        self.published: list[ProducerRecord] = []
        self.failures: dict[str, list[Exception]] = {}
        self.idle = 0
        self.callbacks: dict[str, Any] = {}

    def _maybe_fail(self, name: str) -> None:
        self.log.append(name)
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    def subscribe(self, topics: Sequence[str], **callbacks: Any) -> None:
        self.callbacks = callbacks
        callbacks["on_assign"]([HOME])

    def consume_batches(self, max_records: int, timeout_s: float) -> list[PartitionBatch]:
        if self.script:
            return group_by_partition(self.script.pop(0)())
        time.sleep(min(timeout_s, 0.02))  # as long as it takes to want a flush
        self.idle += 1
        if self.idle > 4:
            self.context.stopping.set()
        return []

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        if not offsets:
            return
        self._maybe_fail("commit")
        self.commits.append(dict(offsets))

    def progress(self) -> dict[Partition, int]:
        return {}

    def pause(self, partitions: Iterable[Partition]) -> None:
        self.log.append("pause")

    def resume(self, partitions: Iterable[Partition]) -> None:
        self.log.append("resume")

    def publish(self, records: Sequence[ProducerRecord]) -> None:
        if records:
            self._maybe_fail("publish")
            self.published += records

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    settings = Settings(sink=SinkSettings(flush_interval_ms=10, max_rows=100))
    fake = FakeKafka(Context("sink", settings, stopping=asyncio.Event()))

    class Client:
        def close(self) -> None: ...

    def insert(_: Any, __: Any, table: str, columns: Any, data: Sequence[Sequence[Any]]) -> None:
        fake._maybe_fail(f"decoded {len(data[0])}")

    def insert_undecoded(_: Any, __: Any, ___: str, container: Sequence[bytes], constants: Mapping[str, str]) -> None:
        marks = b"".join(container).count(bytes.fromhex(constants["mark"].strip("'")))
        fake._maybe_fail(f"insert {marks - 2}")  # two are of the file itself

    monkeypatch.setattr(schema, "migrate", lambda _: [])
    monkeypatch.setattr(clickhouse, "connect", lambda *_, **__: Client())
    monkeypatch.setattr(clickhouse, "insert", insert)
    monkeypatch.setattr(clickhouse, "insert_undecoded", insert_undecoded)
    monkeypatch.setattr(role, "BACKOFF_S", (0.001, 0.002))
    monkeypatch.setattr(role, "REVOKE_TIMEOUT_S", 0.01)
    monkeypatch.setattr(role, "STOP_TIMEOUT_S", 0.05)
    return fake


def run(kafka: FakeKafka) -> Sink:
    sink = Sink(kafka.context, cast(Consumer, kafka), cast(Producer, kafka))
    sink.run()
    return sink


def records(*offsets: int, value: bytes | None = None) -> Callable[[], list[ConsumerRecord]]:
    return lambda: [ConsumerRecord(TOPIC, 0, offset, 0, None, value or request()) for offset in offsets]


def pause() -> list[ConsumerRecord]:
    """Nothing comes for longer than the flush interval."""
    time.sleep(0.02)
    return []


def test_rows_are_inserted_before_their_offsets_are_committed(kafka: FakeKafka) -> None:
    kafka.script = [records(0, 1, 2)]
    sink = run(kafka)
    assert kafka.log == ["insert 3", "commit", "close"]
    assert kafka.commits == [{HOME: 3}]
    assert sink.not_ready() is None


def test_failed_insert_commits_nothing_and_is_retried_with_later_records(kafka: FakeKafka) -> None:
    kafka.failures["insert 2"] = [UnavailableError("away")]
    kafka.script = [records(0, 1), pause, records(2)]
    run(kafka)
    assert kafka.log == ["insert 2", "insert 3", "commit", "close"]
    assert kafka.commits == [{HOME: 3}]


def test_full_batch_that_cannot_be_stored_stops_the_partitions_until_it_can(kafka: FakeKafka) -> None:
    kafka.failures["insert 100"] = [UnavailableError("away"), UnavailableError("away")]
    kafka.script = [records(*range(100))]
    run(kafka)
    assert kafka.log == ["insert 100", "pause", "insert 100", "insert 100", "commit", "resume", "close"]
    assert kafka.commits == [{HOME: 100}]


def test_unavailable_store_leaves_the_batch_uncommitted_at_sigterm(kafka: FakeKafka) -> None:
    kafka.failures["insert 1"] = [UnavailableError("away")] * 1_000
    kafka.script = [records(0)]
    sink = run(kafka)
    assert kafka.commits == []
    assert sink.not_ready() == "away"


def test_unconfirmed_commit_is_repeated_without_a_second_insert(kafka: FakeKafka) -> None:
    kafka.failures["commit"] = [CommitError("timed out")]
    kafka.script = [records(0)]
    run(kafka)
    assert kafka.log.count("insert 1") == 1
    assert kafka.commits == [{HOME: 1}]


def test_fenced_commit_drops_the_batch_and_continues(kafka: FakeKafka) -> None:
    kafka.failures["commit"] = [FencedError("replaced")]
    kafka.script = [records(0), pause, records(1)]
    run(kafka)
    assert kafka.commits == [{HOME: 2}]


def test_poison_is_published_before_the_commit(kafka: FakeKafka) -> None:
    kafka.failures["publish"] = [PublishError("no answer")]
    kafka.script = [records(0, value=b"junk")]
    run(kafka)
    assert kafka.log[0] == "publish"
    assert kafka.log[-3:] == ["publish", "commit", "close"]
    assert [record.topic for record in kafka.published] == [DEAD_LETTERS]
    assert kafka.commits == [{HOME: 1}]


def test_poison_among_dead_letters_is_skipped(kafka: FakeKafka) -> None:
    kafka.script = [lambda: [ConsumerRecord(DEAD_LETTERS, 0, 4, 0, None, b"junk")]]
    run(kafka)
    assert kafka.published == []
    assert kafka.commits == [{(DEAD_LETTERS, 0): 5}]


def test_revoked_partitions_are_flushed_first(kafka: FakeKafka) -> None:
    def revoke() -> list[ConsumerRecord]:
        kafka.callbacks["on_revoke"]([HOME])
        return []

    kafka.script = [records(0), revoke]
    run(kafka)
    assert kafka.log == ["insert 1", "commit", "close"]


def test_records_that_come_with_a_new_assignment_are_stored(kafka: FakeKafka) -> None:
    def reassign() -> list[ConsumerRecord]:
        kafka.callbacks["on_revoke"]([HOME])
        kafka.callbacks["on_assign"]([HOME])
        return records(1, 2)()

    kafka.script = [records(0), reassign, pause, records(3)]
    run(kafka)
    assert [each for each in kafka.log if each.startswith("insert")] == ["insert 1", "insert 2", "insert 1"]
    assert kafka.commits == [{HOME: 1}, {HOME: 3}, {HOME: 4}]


def test_revoke_while_the_store_is_unavailable_drops_the_batch_uncommitted(kafka: FakeKafka) -> None:
    def revoke() -> list[ConsumerRecord]:
        kafka.callbacks["on_revoke"]([HOME])
        return []

    kafka.failures["insert 1"] = [UnavailableError("away")] * 1_000
    kafka.script = [records(0), revoke]
    run(kafka)
    assert kafka.commits == []


def test_group_that_refuses_for_good_ends_the_process(kafka: FakeKafka) -> None:
    class Ended(Exception):
        pass

    def exit_now(reason: str) -> None:
        raise Ended(reason)

    def refuse() -> list[ConsumerRecord]:
        raise FencedError("fatal")

    kafka.context.exit_now = exit_now
    kafka.script = [refuse] * (role.MAX_FENCES + 1)
    with pytest.raises(Ended, match="for good"):
        run(kafka)


def test_flood_of_poison_is_neither_dead_lettered_nor_committed(kafka: FakeKafka) -> None:
    kafka.context.settings = kafka.context.settings.model_copy(
        update={"dead_letters": DeadLetterSettings(min_count=3, max_ratio=0.5)}
    )
    kafka.script = [records(0, 1, value=b"junk"), pause, records(2, 3, value=b"junk")]
    sink = run(kafka)
    assert len(kafka.published) == 2
    assert kafka.commits == [{HOME: 2}]
    assert "HELIOGRAPH_DEAD_LETTERS__MAX_RATIO" in (sink.not_ready() or "")


def test_a_write_that_is_tried_again_counts_its_poison_once(kafka: FakeKafka) -> None:
    kafka.context.settings = kafka.context.settings.model_copy(
        update={"dead_letters": DeadLetterSettings(min_count=3, max_ratio=0.5)}
    )
    kafka.failures["publish"] = [PublishError("no answer")] * 3
    kafka.script = [records(0, 1, value=b"junk")]
    assert run(kafka).not_ready() is None
    assert kafka.commits == [{HOME: 2}]


def test_chunk_clickhouse_cannot_read_is_decoded_here_and_the_rest_is_stored(
    kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "CHUNK", 2)
    broken = request()[:-1]
    unreadable = clickhouse.UnreadableError("cannot read")
    kafka.failures["insert 5"] = [unreadable]
    kafka.script = [lambda: [*records(0, 1, 2)(), *records(3, value=broken)(), *records(4)()]]
    kafka.failures["insert 2"] = [UnavailableError("away"), unreadable]
    run(kafka)
    # The first pair, tried twice, is decoded; in the second pair the store (of this test) minds nothing.
    assert kafka.log == ["insert 5", "insert 2", "insert 2", "decoded 2", "insert 2", "insert 1", "commit", "close"]
    kafka.log.clear()
    kafka.commits.clear()
    kafka.context.stopping.clear()
    kafka.idle = 0
    kafka.failures = {"insert 2": [unreadable]}
    kafka.script = [lambda: [*records(5)(), *records(6, value=broken)()]]
    run(kafka)
    assert kafka.log == ["insert 2", "decoded 1", "publish", "commit", "close"]
    assert kafka.commits == [{HOME: 7}]


def test_internal_error_costs_one_record(kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(value: bytes | None) -> tuple[Any, ...]:
        if value == b"\0bad":
            raise ZeroDivisionError
        return (value,)

    source = replace(SOURCES[STATUS], row=row)
    monkeypatch.setattr(batching, "SOURCES", {STATUS: source})
    kafka.script = [
        lambda: [ConsumerRecord(STATUS, 0, n, 0, None, value) for n, value in enumerate((b"a", b"\0bad", b"b"))]
    ]
    run(kafka)
    (dead_letter,) = [codec("DeadLetter").decode(record.value) for record in kafka.published]
    assert (dead_letter["offset"], dead_letter["reason"], dead_letter["stage"]) == (1, "internal_error", "sink")
    assert kafka.commits == [{(STATUS, 0): 3}]


def test_nothing_in_hand_and_a_marker_passed_is_committed(kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "progress", lambda: {HOME: 9} if not kafka.commits else {})
    run(kafka)
    assert kafka.commits == [{HOME: 9}]


def test_what_is_in_hand_is_stored_before_anything_is_committed(
    kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "progress", lambda: {HOME: 9} if {HOME: 1} in kafka.commits else {})
    kafka.script = [records(0), list]
    run(kafka)
    assert kafka.log[:2] == ["insert 1", "commit"]
    assert kafka.commits[0] == {HOME: 1}


@pytest.mark.parametrize("value", [None, b"", b"junk", request()[:-1], b"\0" * 4_000])
def test_what_is_no_row_of_a_request_is_no_request_to_the_router_either(value: bytes | None) -> None:
    """So that its one letter may be the router's: see stage_of."""
    record = ConsumerRecord(TOPIC, 0, 0, 0, b"k", value)
    assert role.stage_of(record) == "router"
    with pytest.raises(DecodeError):
        row_of(record)
    with pytest.raises(DecodeError):
        decode_request(record)
