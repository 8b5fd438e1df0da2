"""Whether two versions of a schema read each other's records, in both directions; pure.

Backward: what was written with the old version is read with the new one (replay, a topic's retention, compacted topics'
values, which are kept without limit). Forward: what is written with the new one is read with the old one (a roll-back, a
consumer that is not deployed yet). Found by resolving records, not by a list of rules: the stored examples, and records made
from the schema so that every branch of every union, every symbol and an item of every collection is tried.
May import schemas.codec. Never: a registry, a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from schemas.codec import DecodeError, resolve

_SAMPLES: dict[str, list[Any]] = {
    "null": [None],
    "boolean": [True],
    "int": [7],
    "long": [1 << 40],
    "float": [0.5],
    "double": [0.1],
    "bytes": [b"{}"],
    "string": ["text"],
}

Schema = Mapping[str, Any]


def check_compatibility(old: Schema, new: Schema, examples: Iterable[Mapping[str, Any]] = ()) -> list[str]:
    """What breaks between two versions, one line each; [] when both directions hold.

    `examples` are records that fit the old version; made ones are tried in any case.
    """
    problems: dict[str, None] = {}  # in order, without copies
    for record in (*examples, *sample_records(old)):
        problems |= dict.fromkeys(_difference("backward", record, old, new))
    for record in sample_records(new):
        problems |= dict.fromkeys(_difference("forward", record, new, old))
    return list(problems)


def _difference(direction: str, record: Mapping[str, Any], writer: Schema, reader: Schema) -> Iterator[str]:
    """Nothing may fail, and no field that both versions have may change its value."""
    try:
        expected = resolve(record, writer, writer)
        seen = resolve(record, writer, reader)
    except DecodeError as exc:
        yield f"{direction}: {exc}"
        return
    kept = {field["name"] for field in reader["fields"]}
    required = {field["name"] for field in reader["fields"] if "default" not in field}
    for name, value in expected.items():
        if name in kept and not _contains(value, seen[name]):
            yield f"{direction}: {name} changes its value"
    for name in sorted(required - expected.keys()):
        yield f"{direction}: {name} has no default"


def _contains(written: Any, seen: Any) -> bool:
    # A record inside may have gained or lost fields; what both have must be equal.
    if isinstance(written, dict) and isinstance(seen, dict):
        return all(_contains(written[key], seen[key]) for key in written.keys() & seen.keys())
    if isinstance(written, list) and isinstance(seen, list):
        return len(written) == len(seen) and all(map(_contains, written, seen))
    return bool(written == seen)


def sample_records(schema: Schema) -> list[dict[str, Any]]:
    """Records that fit the schema and between them take every branch, every symbol and an item of every collection."""
    choices = {field["name"]: _samples(field["type"]) for field in schema["fields"]}
    rounds = max(map(len, choices.values()), default=1)
    return [{name: values[turn % len(values)] for name, values in choices.items()} for turn in range(rounds)]


def _samples(kind: Any) -> list[Any]:
    if isinstance(kind, list):
        return [sample for branch in kind for sample in _samples(branch)]
    if isinstance(kind, str):
        return _SAMPLES[kind]
    match kind["type"]:
        case "record":
            return sample_records(kind)
        case "array":
            return [[], *([item] for item in _samples(kind["items"]))]
        case "map":
            return [{}, *({"key": item} for item in _samples(kind["values"]))]
        case "enum":
            return list(kind["symbols"])
        case "fixed":
            return [b"\0" * kind["size"]]
        case inner:
            return _samples(inner)
