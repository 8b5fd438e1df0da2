"""The compiled writer writes what fastavro does, and leaves to fastavro what it does not expect."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.notification import Notification
from schemas.codec import codec, iter_examples, manifest, plain_schema
from schemas.events import RecordName
from schemas.writer import ERRORS, compile_writer

NAMES = sorted(manifest())
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LONGS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-5_000, 5_000) | st.sampled_from([63, 64, 4_095, 4_096])
WRONG = st.none() | st.floats() | st.text(max_size=3) | st.binary(max_size=3) | st.booleans() | st.lists(st.integers())
_PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(1 << 31), (1 << 31) - 1),
    "long": LONGS,
    "string": TEXT | st.text("a", min_size=60, max_size=70) | st.just("é" * 2_050),
    "bytes": st.binary(max_size=12) | st.just(bytes(4_097)),
}


def values(schema: Any) -> st.SearchStrategy[Any]:
    """What a schema allows."""
    if isinstance(schema, list):
        return st.one_of([values(branch) for branch in schema])
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return st.fixed_dictionaries({field["name"]: values(field["type"]) for field in schema["fields"]})
    if kind == "array":
        return st.lists(values(schema["items"]), max_size=3)
    if kind == "map":
        return st.dictionaries(TEXT, values(schema["values"]), max_size=3)
    return values(kind) if isinstance(kind, dict | list) else _PLAIN[kind]


def by_fastavro(name: RecordName, record: Any) -> Any:
    try:
        return codec(name)._write_by_fastavro(record)
    except ERRORS as exc:
        return type(exc)


@pytest.mark.parametrize("name", NAMES)
def test_any_record_is_written_alike(name: RecordName) -> None:
    @settings(deadline=None, max_examples=60)
    @given(values(plain_schema(name)))
    def check(record: Any) -> None:
        assert b"".join(codec(name)._write(record)) == by_fastavro(name, record)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_record_with_a_wrong_or_missing_value_is_taken_or_refused_alike(name: RecordName) -> None:
    fields = [field["name"] for field in plain_schema(name)["fields"]]

    @settings(deadline=None, max_examples=100)
    @given(values(plain_schema(name)), st.sampled_from(fields), WRONG, st.booleans())
    def check(record: Any, field: str, wrong: Any, without: bool) -> None:
        if without:
            del record[field]
        else:
            record[field] = wrong
        try:
            written: Any = codec(name).encode(record)[5:]
        except ERRORS as exc:
            written = type(exc)
        assert written == by_fastavro(name, record)

    check()


def test_examples_need_no_fastavro() -> None:
    for _, _, name, record in iter_examples():
        whole = codec(name).decode(codec(name).encode(record))
        assert b"".join(codec(name)._write(whole)) == codec(name)._write_by_fastavro(whole)


def test_number_beyond_64_bits_is_left_to_fastavro() -> None:
    write = compile_writer({"fields": [{"name": "x", "type": "long"}]})
    for wrong in (1 << 63, -(1 << 63) - 1, 1.0, "1", True):
        with pytest.raises(ERRORS):
            write({"x": wrong})
    assert write({"x": -(1 << 63)}) == [b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"]


def test_schema_it_cannot_write_is_refused_when_it_is_made() -> None:
    for kind in ("double", ["string", "null"], {"type": "enum", "symbols": []}):
        with pytest.raises(ValueError, match=r"no writer|a union"):
            compile_writer({"fields": [{"name": "x", "type": kind}]})


def test_what_we_publish_never_needs_the_slow_writer() -> None:
    request = Notification.model_validate(
        {"to": {"email": "a@example.org"}, "content": {"subject": "s", "text": "t"}, "send_at": "2030-01-01T00:00:00Z"}
    ).to_request("t", 1_767_225_600_000, idempotency_key="k")
    assert b"".join(codec("NotificationRequest")._write(request))
