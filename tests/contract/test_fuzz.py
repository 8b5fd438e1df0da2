"""Whatever comes in from outside: mutated records end in a DecodeError, in bounded time and memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.codec import DecodeError, codec, iter_examples
from schemas.events import RecordName
from schemas.topics import MAX_VALUE_BYTES, catalogue

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20

# -- records ----------------------------------------------------------------------------------------------------------

RECORDS: list[tuple[str, RecordName, bytes]] = [
    (f"{topic}/{case}", name, codec(name).encode(record)) for topic, case, name, record in iter_examples()
]
BY_RECORD = {name: (name, raw) for _, name, raw in RECORDS}


def zigzag(number: int) -> bytes:
    """An Avro long, also of more than 64 bits."""
    value, out = (number << 1) if number >= 0 else ((-number << 1) - 1), b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


NUMBERS = [zigzag(n) for n in (-1, -2, 1 << 20, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63), 1 << 70)]
NUMBERS += [b"\xff" * 200, b"\x80" * 50 + b"\x01"]


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Flips, truncations, splices, huge lengths, union index -1 and insertions, anywhere behind the frame."""
    mutant = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(min(5, len(mutant)), len(mutant) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(mutant):
            mutant[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del mutant[at:]
        elif kind == 2:
            other = rng.choice(RECORDS)[2]
            mutant[at:] = other[rng.randrange(5, len(other)) :]
        elif kind == 3:
            number = rng.choice(NUMBERS)
            mutant[at : at + rng.choice((0, 1, len(number)))] = number
        else:
            mutant[at:at] = bytes([rng.randrange(256)]) * rng.choice((1, 10, 5_000))
    return bytes(mutant)


def test_every_topic_has_a_record_to_mutate() -> None:
    assert {topic.record for topic in catalogue().values()} == set(BY_RECORD)


@pytest.mark.parametrize(("case", "name", "raw"), RECORDS, ids=[case for case, _, _ in RECORDS])
def test_a_mutated_record_is_a_record_or_a_decode_error(case: str, name: RecordName, raw: bytes) -> None:
    rng = random.Random(case)
    started = time.process_time()
    for _ in range(2_000):
        try:
            record = codec(name).decode(mutate(raw, rng))
        except DecodeError:
            continue
        codec(name).encode(record)  # what is let in can be passed on
    assert time.process_time() - started < 10


@given(st.sampled_from(sorted(BY_RECORD)), st.binary(max_size=300))
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_arbitrary_bytes_behind_a_valid_frame_are_a_record_or_a_decode_error(name: RecordName, body: bytes) -> None:
    try:
        codec(name).decode(BY_RECORD[name][1][:5] + body)
    except DecodeError:
        return


@pytest.mark.parametrize("number", [1 << 31, 1 << 62, -(1 << 31) - 1])
@pytest.mark.parametrize(
    ("name", "field"), [("NotificationRequest", "generation"), ("DeliveryStatus", "attempt"), ("Template", "version")]
)
def test_an_int_of_more_than_32_bits_is_a_decode_error(name: RecordName, field: str, number: int) -> None:
    record = codec(name).decode(BY_RECORD[name][1])
    marked = codec(name).encode({**record, field: 123_456_789})
    assert marked.count(zigzag(123_456_789)) == 1
    with pytest.raises(DecodeError, match=f"{field} of the {name} is no 32-bit number"):
        codec(name).decode(marked.replace(zigzag(123_456_789), zigzag(number)))


@pytest.mark.parametrize(
    ("field", "item", "size"),
    [("tags", "", 1), ("channels", "", 1), ("addresses", {"channel": "", "value": "", "platform": None}, 3)],
)
def test_the_largest_record_of_the_smallest_items_takes_bounded_time_and_memory(
    field: str, item: object, size: int
) -> None:
    record = codec("NotificationRequest").decode(BY_RECORD["NotificationRequest"][1])
    raw = codec("NotificationRequest").encode({**record, field: [item] * ((MAX_VALUE_BYTES - 10_000) // size)})
    assert MAX_VALUE_BYTES - 20_000 < len(raw) <= MAX_VALUE_BYTES
    started = time.process_time()
    codec("NotificationRequest").decode(raw)
    assert time.process_time() - started < 3
    tracemalloc.start()
    try:
        codec("NotificationRequest").decode(raw)
        assert tracemalloc.get_traced_memory()[1] < 256 * MIB
    finally:
        tracemalloc.stop()
