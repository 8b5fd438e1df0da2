"""What ClickHouse decodes itself is what the sink's own decoder makes of it, row for row, and neither takes what the other refuses."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from runtime import ids
from runtime.records import ConsumerRecord, group_by_partition
from schemas.codec import DecodeError, codec, read_schema
from schemas.events import RecordName, states
from schemas.topics import DEAD_LETTERS, RECEIPTS, STATUS, requests_topic
from sinks import clickhouse
from sinks.batching import Batch
from sinks.rows import SOURCES, row_of
from sinks.storing import store_batch, store_chunk
from tests.integration.test_clickhouse_schema import Store, server
from tests.support.clickhouse import Server
from tests.support.records import hostile_records

__all__ = ["server"]  # a fixture

pytestmark = pytest.mark.clickhouse

TOPICS: dict[RecordName, tuple[str, ...]] = {
    "NotificationRequest": (requests_topic("normal"), requests_topic("bulk")),
    "DeliveryStatus": (STATUS,),
    "ProviderReceipt": (RECEIPTS,),
}
TEXTS = ("", "a", "order-shipped", "späß ✉ \U0001f4e8", "nul\0nul", "'quoted' \\ \"\n", "x" * 300)
TIMES = (0, 1, -5, 1_790_000_000_000, 4_102_444_799_999, 4_102_444_800_000, (1 << 63) - 1, -(1 << 63))


class Maker:
    """Random records of a schema that each decoder takes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def record(self, name: RecordName) -> dict[str, Any]:
        made = {field["name"]: self._value(field["type"]) for field in read_schema(name)["fields"]}
        if "notification_id" in made:
            made["notification_id"] = ids.notification_id(self.rng.choice((0, 1_790_000_000_000, (1 << 48) - 1)), "t")
        if name == "DeliveryStatus":
            made["state"] = self.rng.choice(list(states().all))
        return made

    def _value(self, kind: Any) -> Any:
        rng = self.rng
        if isinstance(kind, list):
            return None if rng.random() < 0.4 else self._value(kind[1])
        if isinstance(kind, Mapping):
            if kind.get("logicalType") == "uuid":
                return str(uuid.UUID(int=rng.getrandbits(128)))
            if kind.get("logicalType"):
                return rng.choice(TIMES)
            if kind["type"] == "record":
                # An empty topic stands for no source, on either way.
                return {f["name"]: "topic" if f["name"] == "topic" else self._value(f["type"]) for f in kind["fields"]}
            if kind["type"] == "array":
                return [self._value(kind["items"]) for _ in range(rng.choice((0, 0, 1, 3)))]
            if kind["type"] == "map":
                return {rng.choice(TEXTS): self._value(kind["values"]) for _ in range(rng.choice((0, 0, 2)))}
        makers: dict[str, Callable[[], Any]] = {
            "string": lambda: rng.choice(TEXTS),
            "bytes": lambda: rng.randbytes(rng.choice((0, 5, 70))),
            "boolean": lambda: rng.random() < 0.5,
            "int": lambda: rng.choice((0, 1, -1, 300, (1 << 31) - 1, -(1 << 31))),
            "long": lambda: rng.choice((0, 5, 1 << 40, (1 << 63) - 1)),
        }
        return makers[kind]()


@pytest.fixture(scope="module")
def two(server: Server) -> tuple[Store, Store]:
    """One for each way."""
    return Store(server, "undecoded"), Store(server, "decoded")


@pytest.fixture
def ways(two: tuple[Store, Store]) -> Iterator[tuple[Store, Store]]:
    for each in two:
        each.clear()
    yield two


def put(into: Store, records: Sequence[ConsumerRecord], *, decode: bool) -> None:
    batch = Batch(max_rows=len(records))
    batch.add(group_by_partition(records))
    for chunk in batch.chunks():
        chunk.decode = decode
        assert store_chunk(into.settings, into.client, chunk)[1] == []
        batch.done()


def raw_rows(of: Store, table: str) -> list[str]:
    return sorted(map(repr, of.rows(f"SELECT * EXCEPT (stored_at), toString(version) FROM {table}")))


@pytest.mark.parametrize("name", TOPICS)
def test_both_ways_make_the_same_rows(ways: tuple[Store, Store], name: RecordName) -> None:
    maker = Maker(seed=11)
    records = [
        ConsumerRecord(maker.rng.choice(TOPICS[name]), 0, n, 0, None, codec(name).encode(maker.record(name)))
        for n in range(800)
    ]
    records.sort(key=lambda record: record.topic)
    put(ways[0], records, decode=False)
    put(ways[1], records, decode=True)
    table = SOURCES[TOPICS[name][0]].table.name
    rows = raw_rows(ways[0], table)
    assert rows == raw_rows(ways[1], table)
    assert len(rows) > 600


def hostile(name: RecordName, count: int) -> list[bytes]:
    """Decodable records of which any value may be anything that its type holds."""
    found: list[bytes] = []

    # The same ones every time.
    @seed(7)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(hostile_records(name))
    def collect(record: dict[str, Any]) -> None:
        maker = Maker(seed=len(found))
        if len(found) % 4:  # past the first checks, most of them
            sound = maker.record(name)
            record |= {field: sound[field] for field in sound if field in _IDENTITY}
        found.append(codec(name).encode(record))

    collect()
    return found


_IDENTITY = ("notification_id", "event_id", "message_id", "state", "dead_letter_id")


@pytest.mark.parametrize("name", [*TOPICS, "DeadLetter"])
def test_hostile_records_become_rows_or_dead_letters_alike_in_both_ways(
    ways: tuple[Store, Store], name: RecordName
) -> None:
    topic = TOPICS[name][0] if name in TOPICS else DEAD_LETTERS
    records = [ConsumerRecord(topic, 0, n, 0, None, value) for n, value in enumerate(hostile(name, 400))]
    table = SOURCES[topic].table
    refused: list[list[int]] = []
    for way, into in enumerate(ways):
        into.client.command(f"TRUNCATE TABLE {table.name}")  # what other tests have left, in one way or the other
        # Most of these records are older than the table keeps them: a merge takes them away, in one of the two or in both.
        into.client.command(f"SYSTEM STOP MERGES {table.name}")
        batch = Batch(max_rows=len(records))
        batch.add(group_by_partition(records))
        for chunk in batch._chunks:
            chunk.decode |= way == 1
        store_batch(into.settings, into.client, batch)
        assert {type(error) for _, error in batch.poison} <= {DecodeError}
        refused.append(sorted(record.offset for record, _ in batch.poison))
    assert refused[0] == refused[1]
    rows = raw_rows(ways[0], table.name)
    assert rows == raw_rows(ways[1], table.name)
    assert rows


def odd_records(name: RecordName, count: int) -> Iterator[bytes]:
    """Records that are damaged, or say what is not allowed."""
    maker = Maker(seed=23)
    rng = maker.rng
    for n in range(count):
        record = maker.record(name)
        if n % 3 == 0:
            wrong = rng.choice(
                ("", "no id", str(uuid.uuid4()), "{" + str(uuid.uuid4()) + "}", str(uuid.uuid4()).upper(), "0" * 36)
            )
            field = rng.choice(
                [key for key in record if key.endswith("_id") and key not in ("template_id", "correlation_id")]
            )
            record[field] = wrong
            if name == "DeliveryStatus" and rng.random() < 0.2:
                record["state"] = rng.choice(("", "gone", "sent "))
            yield codec(name).encode(record)
            continue
        raw = bytearray(codec(name).encode(record))
        for _ in range(rng.choice((1, 1, 3))):
            place = rng.randrange(5, len(raw))
            match rng.randrange(4):
                case 0:
                    raw[place] = rng.randrange(256)
                case 1:
                    del raw[place : place + rng.randint(1, 3)]
                case 2:
                    raw[place:place] = rng.randbytes(rng.randint(1, 3))
                case _:
                    raw += rng.randbytes(rng.randint(1, 3))
        yield bytes(raw)


def branch_alone(error: DecodeError) -> bool:
    """ClickHouse takes any branch of a union but the second one for null."""
    return "no such branch" in repr(error.__cause__) or "index out of range" in repr(error.__cause__)


@pytest.mark.parametrize("name", TOPICS)
def test_the_store_takes_nothing_that_the_decoder_refuses(ways: tuple[Store, Store], name: RecordName) -> None:
    undecoded, decoded = ways
    good = codec(name).encode(Maker(seed=5).record(name))
    topic = TOPICS[name][0]
    taken = refused = 0
    for n, odd in enumerate(odd_records(name, 200)):
        error: DecodeError | None = None
        try:
            row_of(ConsumerRecord(topic, 0, n, 0, None, odd))
        except DecodeError as exc:
            error = exc
        # Between two good ones: what it has too much or too little would be read as part of them.
        records = [ConsumerRecord(topic, 0, 3 * n + i, 0, None, value) for i, value in enumerate((good, odd, good))]
        before = undecoded.rows(f"SELECT count() FROM {SOURCES[topic].table.name}")
        try:
            put(undecoded, records, decode=False)
        except clickhouse.UnreadableError:
            refused += 1
            assert undecoded.rows(f"SELECT count() FROM {SOURCES[topic].table.name}") == before
            continue
        if error is not None:
            assert branch_alone(error), (odd, error, error.__cause__)
            undecoded.clear()
            decoded.clear()
            continue
        taken += 1
        put(decoded, records, decode=True)
        assert raw_rows(undecoded, SOURCES[topic].table.name) == raw_rows(decoded, SOURCES[topic].table.name)
        undecoded.clear()
        decoded.clear()
    assert taken >= 5, "every odd record was refused"
    assert refused > 50
