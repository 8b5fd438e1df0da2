"""The contracts as data hold together: schemas, types, topics, reasons, examples, codec."""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.channels import CHANNELS
from schemas.codec import DecodeError, RecordTooLarge, codec, iter_examples, manifest, read_schema
from schemas.events import LANES, RECORD_TYPES, RecordName, states
from schemas.topics import MAX_VALUE_BYTES, catalogue, ledger_ms
from tests.support.made import encoded, made


@pytest.mark.parametrize("name", sorted(manifest()))
def test_every_field_has_a_doc_and_a_place_in_its_type(name: RecordName) -> None:
    schema = read_schema(name)
    assert schema["name"] == name
    assert schema["doc"]
    assert all(field["doc"] for field in schema["fields"])
    assert set(typing.get_type_hints(RECORD_TYPES[name])) == {f["name"] for f in schema["fields"]}


def test_schema_ids_are_unique() -> None:
    assert len({entry["id"] for entry in manifest().values()}) == len(manifest())


def _zero_sized(kind: object) -> bool:
    return kind == "null" or (isinstance(kind, dict) and kind.get("type") == "record" and not kind["fields"])


def _walk(kind: object, inside: tuple[str, ...]) -> typing.Iterator[tuple[object, tuple[str, ...]]]:
    yield kind, inside
    if isinstance(kind, list):
        for branch in kind:
            yield from _walk(branch, inside)
    elif isinstance(kind, dict):
        named = (*inside, kind["name"]) if kind.get("type") == "record" else inside
        for field in kind.get("fields", ()):
            yield from _walk(field["type"], named)
        for key in ("items", "values"):
            if key in kind:
                yield from _walk(kind[key], named)
        if isinstance(kind.get("type"), dict | list):
            yield from _walk(kind["type"], named)


@pytest.mark.parametrize("name", sorted(manifest()))
def test_no_schema_recurses_or_has_items_without_size(name: RecordName) -> None:
    for kind, inside in _walk(read_schema(name), ()):
        assert not (isinstance(kind, str) and kind in inside), "recursion segfaults readers"
        if isinstance(kind, dict) and "items" in kind:
            assert not _zero_sized(kind["items"]), "seven bytes would hang a reader"


def test_zero_size_and_recursion_guards_catch_a_bad_schema() -> None:
    bomb = {"type": "record", "name": "B", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}
    assert any(isinstance(k, dict) and "items" in k and _zero_sized(k["items"]) for k, _ in _walk(bomb, ()))
    loop = {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]}
    assert any(isinstance(k, str) and k in inside for k, inside in _walk(loop, ()))


def test_topics_cover_every_lane_and_channel_with_their_contract() -> None:
    topics = catalogue()
    assert len(topics) == len(LANES) + 2 * len(LANES) * len(CHANNELS) + 14
    for topic in topics.values():
        assert topic.name.startswith("notify.") and topic.name.endswith(".v1")
        assert topic.record in manifest()
        assert topic.producers and topic.consumers and topic.description
        assert set(topic.partitions) == {"local", "default"}
        assert ("retention.ms" in topic.config) == ("delete" in topic.policy)
    assert topics["notify.status.v1"].config["retention.ms"] == str(30 * 86_400_000)


def test_settled_states_have_reasons_except_where_none_is_needed() -> None:
    known = states()
    assert {state for state in known.settled if not known.reasons[state]} == {"sent", "delivered"}
    assert set(known.best_first) == set(known.settled)
    assert known.rank["delivered"] > known.rank["sent"] > known.rank["routed"]
    assert known.rank["bounced"] > known.rank["delivered"]


def test_message_may_be_retried_only_in_states_in_which_it_was_not_received() -> None:
    assert states().retriable == {"failed", "rejected", "expired", "suppressed", "skipped", "dead_lettered"}
    assert states().retriable <= states().settled


def test_ledger_remembers_as_long_as_its_topics_keep_a_record() -> None:
    assert ledger_ms() == 7 * 86_400_000
    assert {topic.config["retention.ms"] for topic in catalogue().values() if topic.record == "LedgerEntry"} == {
        str(ledger_ms())
    }


def test_every_topic_has_an_example_and_every_example_survives_the_wire() -> None:
    seen = set()
    for topic, case, name, record in iter_examples():
        decoded = codec(name).decode(codec(name).encode(record))
        for field, value in record.items():
            assert decoded[field] == value, (topic, case, field)
        if "state" in record and record.get("reason"):
            assert record["reason"] in states().reasons[record["state"]]
        seen.add(topic)
    missing = {name for name in catalogue() if (name not in seen and ".normal." in name) or name.count(".") == 2} - seen
    assert not missing


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_raise_decode_error(raw: bytes) -> None:
    for name in manifest():
        for framed in (raw, codec(name).encode(_MINIMAL[name])[:5] + raw):
            try:
                codec(name).decode(framed)
            except DecodeError as exc:
                assert str(exc)


_MINIMAL = {name: record for _, _, name, record in iter_examples()}


@pytest.mark.parametrize("name", sorted(manifest()))
def test_every_truncation_and_extension_is_refused(name: RecordName) -> None:
    raw = codec(name).encode(_MINIMAL[name])
    for end in range(len(raw)):
        with pytest.raises(DecodeError):
            codec(name).decode(raw[:end])
    with pytest.raises(DecodeError, match="follow"):
        codec(name).decode(raw + b"\0")


def test_tombstone_oversize_and_foreign_schema_say_what_is_wrong() -> None:
    requests = codec("NotificationRequest")
    for raw, words in (
        (None, "tombstone"),
        (b"\0" * (MAX_VALUE_BYTES + 1), "allowed"),
        (b"\1\2\3", "wire format"),
        (codec("Timer").encode(_MINIMAL["Timer"]), "schema id 6"),
    ):
        with pytest.raises(DecodeError, match=words):
            requests.decode(raw)


@pytest.mark.parametrize("topic, record", [(topic, record) for topic, _, _, record in iter_examples()])
def test_record_is_encoded_up_to_the_size_its_topic_holds(topic: str, record: dict[str, object]) -> None:
    encoder = codec(catalogue()[topic].record)
    text = next((f for f, v in record.items() if isinstance(v, str) and f not in ("lane", "channel")))
    spare = encoder.max_bytes - len(encoder.encode({**record, text: ""})) - 4
    raw = encoder.encode({**record, text: "x" * spare})
    assert len(raw) <= encoder.max_bytes
    assert encoder.decode(raw)[text] == "x" * spare
    with pytest.raises(RecordTooLarge, match="allowed") as caught:
        encoder.encode({**record, text: "x" * (spare + 8)})
    assert caught.value.limit == encoder.max_bytes < caught.value.size


@pytest.mark.parametrize("name", RECORD_TYPES)
def test_record_of_the_tests_has_every_field_and_survives_the_wire(name: RecordName) -> None:
    assert set(made(name)) == set(typing.get_type_hints(RECORD_TYPES[name]))
    assert codec(name).decode(encoded(name)) == made(name)
    with pytest.raises(AssertionError, match="has no colour"):
        made(name, colour="red")
