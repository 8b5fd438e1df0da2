"""The compiled readers take and refuse what fastavro does, and read the same out of it."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.codec import DecodeError, RecordCodec, codec, iter_examples
from schemas.events import RecordName
from schemas.reader import compile_reader

RECORDS: dict[RecordName, tuple[str, ...]] = {
    "DeliveryStatus": (
        "event_id",
        "notification_id",
        "message_id",
        "tenant",
        "channel",
        "lane",
        "state",
        "reason",
        "detail",
        "attempt",
        "provider",
        "provider_message_id",
        "possible_duplicate",
        "template_id",
        "template_version",
        "preference_version",
        "occurred_at",
        "latency_ms",
        "source",
        "correlation_id",
    ),
    "NotificationRequest": (
        "notification_id",
        "tenant",
        "accepted_at",
        "idempotency_key",
        "user_id",
        "addresses",
        "template_id",
        "template_version",
        "data",
        "content",
        "channels",
        "send_at",
        "tags",
        "generation",
        "dry_run",
        "source",
    ),
}
EXAMPLES = [(name, codec(name).encode(record)) for _, _, name, record in iter_examples() if name in RECORDS]
EVERY = [(name, codec(name).encode(record)) for _, _, name, record in iter_examples()]
READERS = {name: codec(name).reader(*fields) for name, fields in RECORDS.items()}


def by_fastavro(name: RecordName, raw: bytes | None) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return tuple(map(plain, value.values()))
        return [plain(item) for item in value] if isinstance(value, list) else value

    record = whole_by_fastavro(name, raw)
    return DecodeError if record is DecodeError else tuple(plain(record[field]) for field in RECORDS[name])


def whole_by_fastavro(name: RecordName, raw: bytes | None) -> Any:
    slow = RecordCodec(name)
    vars(slow)["_read"] = leave_it_to_fastavro
    return whole(slow, raw)


def leave_it_to_fastavro(*_: object) -> NoReturn:
    raise ValueError


def whole(decoder: RecordCodec, raw: bytes | None) -> Any:
    try:
        return decoder.decode(raw)
    except DecodeError:
        return DecodeError


def by_reader(name: RecordName, raw: bytes | None) -> Any:
    try:
        return READERS[name](raw)
    except DecodeError:
        return DecodeError


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_are_read_alike(number: int) -> None:
    name, raw = EXAMPLES[number]
    assert by_reader(name, raw) == by_fastavro(name, raw) != DecodeError


def test_both_kinds_have_examples() -> None:
    assert {name for name, _ in EXAMPLES} == set(RECORDS)


@pytest.mark.parametrize("number", range(len(EVERY)))
def test_whole_examples_are_read_alike(number: int) -> None:
    name, raw = EVERY[number]
    assert codec(name)._read(raw, 5) == whole_by_fastavro(name, raw)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_bytes_are_read_or_refused_alike(data: st.DataObject) -> None:
    name, raw = data.draw(st.sampled_from(EVERY))
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "insert", "end"]))
        if kind == "set":
            damaged[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[place : place + data.draw(st.integers(1, 3))]
        elif kind == "insert":
            damaged[place:place] = data.draw(st.binary(max_size=12))
        else:
            damaged += data.draw(st.binary(max_size=3))
        if not damaged:
            return
    assert whole(codec(name), bytes(damaged)) == whole_by_fastavro(name, bytes(damaged))
    if name in RECORDS:
        assert by_reader(name, bytes(damaged)) == by_fastavro(name, bytes(damaged))


@settings(deadline=None)
@given(st.sampled_from(sorted(RECORDS)), st.binary(max_size=200))
@example("DeliveryStatus", b"")
@example("NotificationRequest", bytes(300))
def test_any_bytes_are_read_or_refused_alike(name: RecordName, junk: bytes) -> None:
    prefix = EXAMPLES[[each for each, _ in EXAMPLES].index(name)][1][:5]
    assert whole(codec(name), prefix + junk) == whole_by_fastavro(name, prefix + junk)
    assert by_reader(name, prefix + junk) == by_fastavro(name, prefix + junk)
    assert by_reader(name, junk) == by_fastavro(name, junk)


def test_every_single_byte_changed_to_every_value_is_read_alike() -> None:
    for name, raw in EXAMPLES[:1] + EXAMPLES[-2:]:
        for place in range(5, min(len(raw), 130)):
            for value in (*range(8), 0x7F, 0x80, 0x81, 0xC3, 0xFE, 0xFF):
                changed = raw[:place] + bytes([value]) + raw[place + 1 :]
                assert by_reader(name, changed) == by_fastavro(name, changed), (name, place, value)


def test_nothing_and_too_much_are_refused_in_words() -> None:
    read = READERS["DeliveryStatus"]
    with pytest.raises(DecodeError, match="tombstone"):
        read(None)
    with pytest.raises(DecodeError, match="are more than"):
        read(bytes((1 << 20) + 1))
    with pytest.raises(DecodeError, match="Confluent"):
        read(b"x")


def test_schema_it_cannot_read_is_refused_when_it_is_made() -> None:
    for kind in ("double", ["string", "null"], {"type": "map", "values": "string"}):
        with pytest.raises(ValueError, match=r"no reader|a union|a map"):
            compile_reader({"fields": [{"name": "x", "type": kind}]}, ["x"])


@pytest.mark.parametrize("extra", range(12))
def test_number_of_more_than_ten_bytes_is_read_alike(extra: int) -> None:
    raw = codec("LedgerEntry").encode({"message_id": "m", "next_attempt": 1, "state": None, "recorded_at": 1})
    overlong = raw[:-1] + b"\xff" * (9 + extra) + b"\x55"
    assert whole(codec("LedgerEntry"), overlong) == whole_by_fastavro("LedgerEntry", overlong) != DecodeError
