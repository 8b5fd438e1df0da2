"""Every version of a schema reads every other's records: replay reads old bytes, a roll-back reads new ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from schemas.codec import RecordCodec, codec, iter_examples, manifest, read_schema, read_versions
from schemas.compatibility import check_compatibility, sample_records
from schemas.events import RecordName

EXAMPLES: dict[str, list[dict[str, Any]]] = {}
for _, _, _name, _record in iter_examples():
    EXAMPLES.setdefault(_name, []).append(_record)


@pytest.mark.parametrize("name", sorted(manifest()))
def test_every_version_reads_every_earlier_and_later_one(name: RecordName) -> None:
    versions = [schema for _, schema in read_versions(name)]
    for number, old in enumerate(versions):
        for new in versions[number:]:
            assert check_compatibility(old, new, EXAMPLES[name] if old is versions[-1] else ()) == []


@pytest.mark.parametrize("name", sorted(manifest()))
def test_made_records_take_every_branch_and_survive_the_wire(name: RecordName) -> None:
    for record in sample_records(read_schema(name)):
        assert codec(name).decode(codec(name).encode(record)) == record


def test_ids_of_versions_are_never_used_twice() -> None:
    ids = [schema_id for name in manifest() for schema_id, _ in read_versions(name)]
    assert len(set(ids)) == len(ids)
    assert all(a < b for name in manifest() for (a, _), (b, _) in pairwise(read_versions(name)))


def _with(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    schema = copy.deepcopy(read_schema("NotificationRequest"))
    change(schema["fields"])
    return schema


def _field(fields: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(field for field in fields if field["name"] == name)


def test_field_with_a_default_may_come_and_go() -> None:
    old = read_schema("NotificationRequest")
    new = _with(lambda fields: fields.append({"name": "campaign", "type": ["null", "string"], "default": None}))
    assert check_compatibility(old, new, EXAMPLES["NotificationRequest"]) == []
    assert check_compatibility(new, old) == []


def test_default_of_bytes_is_filled_in_as_bytes() -> None:
    old = _with(lambda fields: fields.remove(_field(fields, "data")))
    assert check_compatibility(old, read_schema("NotificationRequest")) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        pytest.param(
            lambda fields: fields.append({"name": "cost", "type": "int"}),
            ["backward", "cost"],
            id="added-without-default",
        ),
        pytest.param(
            lambda fields: fields.remove(_field(fields, "tenant")), ["forward", "tenant"], id="required-removed"
        ),
        pytest.param(
            lambda fields: _field(fields, "generation").update(type="string", default="0"),
            ["backward", "forward"],
            id="type-changed",
        ),
        pytest.param(lambda fields: _field(fields, "generation").update(type="long"), ["forward"], id="type-widened"),
        pytest.param(
            lambda fields: _field(fields, "template_id").update(type="string", default=""),
            ["backward"],
            id="null-refused",
        ),
        pytest.param(
            lambda fields: _field(fields, "addresses")["type"]["items"]["fields"].append(
                {"name": "label", "type": "string"}
            ),
            ["backward", "label"],
            id="added-inside-an-item",
        ),
        pytest.param(
            lambda fields: _field(fields, "tenant").update(name="owner"), ["backward", "forward", "owner"], id="renamed"
        ),
    ],
)
def test_change_that_breaks_a_reader_is_found(
    change: Callable[[list[dict[str, Any]]], object], found: list[str]
) -> None:
    problems = " / ".join(check_compatibility(read_schema("NotificationRequest"), _with(change)))
    for word in found:
        assert word in problems


def test_codec_reads_an_earlier_version_into_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    old = _with(lambda fields: fields.remove(_field(fields, "data")))
    versions = [(1, old), (12, read_schema("NotificationRequest"))]
    monkeypatch.setattr("schemas.codec.read_versions", lambda _: versions[:1])
    raw = RecordCodec("NotificationRequest").encode(EXAMPLES["NotificationRequest"][0])
    monkeypatch.setattr("schemas.codec.read_versions", lambda _: versions)
    latest = RecordCodec("NotificationRequest")
    record = latest.decode(raw)
    assert record["data"] == b"{}"
    assert latest.schema_id == 12
    assert latest.decode(latest.encode(record)) == record


def test_ids_of_a_registry_are_written_and_read_beside_the_manifests() -> None:
    requests = RecordCodec("NotificationRequest")
    record = sample_records(read_schema("NotificationRequest"))[0]
    before = requests.encode(record)
    requests.use_ids([70_001])
    after = requests.encode(record)
    assert after[:5] == b"\x00\x00\x01\x11\x71"
    assert requests.decode(before) == requests.decode(after) == record
