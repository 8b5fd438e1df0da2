"""Records as a stranger may write them: decodable, of the right types, and hostile in every value."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from schemas.codec import plain_schema
from schemas.events import RecordName

HOSTILE_TEXT = st.one_of(
    st.sampled_from(
        [
            "",
            "\0",
            "a\0b",
            "\x1b[2J",
            "\u202e",
            "a:b",
            "addr:",
            "addr:" + "0" * 32,
            "a/b",
            "%00",
            "x" * 5_000,
            "é" * 300,
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)
"""Half a surrogate pair cannot be: Avro's text is UTF-8."""
_LONGS = st.one_of(st.integers(-(1 << 63), (1 << 63) - 1), st.sampled_from([0, 1, -1, 1 << 48, (1 << 63) - 1]))


def _values(schema: Any) -> st.SearchStrategy[Any]:
    if isinstance(schema, list):
        return st.one_of([_values(branch) for branch in schema])
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(kind, dict | list):
        return _values(kind)
    if kind == "record":
        return st.fixed_dictionaries({field["name"]: _values(field["type"]) for field in schema["fields"]})
    if kind == "array":
        return st.lists(_values(schema["items"]), max_size=3)
    if kind == "map":
        return st.dictionaries(HOSTILE_TEXT, _values(schema["values"]), max_size=3)
    if kind == "enum":
        return st.sampled_from(schema["symbols"])
    return {
        "null": st.none(),
        "string": HOSTILE_TEXT,
        "bytes": st.binary(max_size=100),
        "boolean": st.booleans(),
        "int": st.integers(-(1 << 31), (1 << 31) - 1),
        "long": _LONGS,
        "double": st.floats(),
        "float": st.floats(width=32),
    }[kind]


def hostile_records(name: RecordName, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any record of this kind; `fields` say more about some, so that it gets past the first check."""
    return st.builds(
        lambda record, known: {**record, **known}, _values(plain_schema(name)), st.fixed_dictionaries(fields)
    )
