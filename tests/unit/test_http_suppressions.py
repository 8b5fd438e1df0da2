"""An import of suppressions: each line for itself, none of any length, nothing that is no Problem."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.reference.suppressions import CSV_TYPE, JSONL_TYPES, MAX_LINE_BYTES, read_import
from runtime.http.problems import Problem

GOOD = {"channel": "email", "address": "a@example.com"}


def jsonl(*lines: str) -> bytes:
    return "\n".join([json.dumps(GOOD), *lines, json.dumps({**GOOD, "address": "b@example.com"})]).encode()


def csv(*lines: str) -> bytes:
    return "\n".join(["channel,address", "email,a@example.com", *lines, "email,b@example.com"]).encode()


@pytest.mark.parametrize(
    ("raw", "kind", "line"),
    [
        (jsonl(json.dumps({**GOOD, "address": "x" * MAX_LINE_BYTES})), JSONL_TYPES[0], 2),
        (jsonl("é" * (MAX_LINE_BYTES // 2 + 1)), JSONL_TYPES[0], 2),
        (jsonl("[" * 1_000_000), JSONL_TYPES[0], 2),
        (jsonl("{" + ",".join('"a":1' for _ in range(100_000)) + "}"), JSONL_TYPES[0], 2),
        (csv("email," + "x" * MAX_LINE_BYTES), CSV_TYPE, 3),
        (csv("email," + '"' * 1_000_000), CSV_TYPE, 3),
    ],
)
def test_line_beyond_its_bound_is_refused_for_itself(raw: bytes, kind: str, line: int) -> None:
    read = read_import(raw, kind)
    assert [one.address for one in read.taken] == ["a@example.com", "b@example.com"]
    assert [(each["line"], each["code"]) for each in read.refused] == [(line, "line_too_long")]


@given(
    st.binary(max_size=400) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "replace")),
    st.sampled_from([CSV_TYPE, JSONL_TYPES[0]]),
)
@settings(deadline=None)
def test_any_bytes_are_read_or_a_problem(raw: bytes, kind: str) -> None:
    for text in (raw, b"channel,address\n" + raw, json.dumps(GOOD).encode() + b"\n" + raw):
        try:
            read_import(text, kind)
        except Problem as problem:
            assert 400 <= problem.status < 500


@given(
    st.dictionaries(
        st.sampled_from(["channel", "address", "address_hash", "reason", "expires_at", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=20)
        | st.lists(st.text(), max_size=2),
    )
)
@settings(deadline=None)
def test_wrong_types_of_a_line_are_refused_with_a_word(value: dict[str, Any]) -> None:
    read = read_import(json.dumps(value).encode(), JSONL_TYPES[0])
    assert len(read.taken) + len(read.refused) == 1
