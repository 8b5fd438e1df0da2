"""Records become rows: what is kept, what never is, and what is no row."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from uuid import UUID, uuid4

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import ids
from runtime.dead_letters import dead_letter_record
from runtime.records import ConsumerRecord
from schemas.codec import DecodeError, codec, plain_schema
from schemas.events import states
from schemas.topics import catalogue, requests_topic
from sinks.rows import (
    DEAD_LETTERS_TABLE,
    EVENTS_TABLE,
    MAX_TIME_MS,
    NO_ID,
    RECEIPTS_TABLE,
    REQUESTS_TABLE,
    SOURCES,
    Table,
    dead_letter_row,
    event_row,
    id_bytes,
    receipt_row,
    request_row,
    row_of,
)
from tests.support.made import status as any_status
from tests.support.records import HOSTILE_TEXT, hostile_records

NOW = 1_790_000_000_000
NID = ids.notification_id(NOW, "t", "k")


def request(**more: Any) -> bytes:
    value = {"notification_id": NID, "tenant": "t", "accepted_at": NOW, "user_id": "u1", **more}
    return codec("NotificationRequest").encode(value)


def status(**more: Any) -> bytes:
    made = any_status(**{"event_id": str(UUID(int=7)), "notification_id": NID, "occurred_at": NOW, **more})
    return codec("DeliveryStatus").encode(made)


def named(table: Table, row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(table.columns, row, strict=True))


def test_request_keeps_its_place_in_time_and_who_asked() -> None:
    row = named(REQUESTS_TABLE, request_row(request(send_at=NOW + 5, expires_at=NOW + 9, channels=["sms"]), "bulk"))
    assert row["notification_id"] == UUID(NID).bytes
    assert (row["accepted_at"], row["send_at"], row["expires_at"]) == (NOW, NOW + 5, NOW + 9)
    assert (row["lane"], row["user_id"], row["keyed"], row["channels"]) == ("bulk", "u1", False, ["sms"])


def test_lane_of_a_request_is_the_topics() -> None:
    record = ConsumerRecord(requests_topic("critical"), 0, 0, 0, None, request(lane="bulk"))
    table, row = row_of(record)
    assert (table, named(table, row)["lane"]) == (REQUESTS_TABLE, "critical")


def test_nothing_private_is_in_the_row() -> None:
    row = request_row(
        request(
            addresses=[{"channel": "email", "value": "canary@x.org", "platform": None}],
            data=b'"canary"',
            content=b'"canary"',
            metadata={"canary": "canary"},
            overrides=b'"canary"',
            idempotency_key="canary",
        ),
        "normal",
    )
    assert "canary" not in repr(row)
    assert named(REQUESTS_TABLE, row)["keyed"] is True


@pytest.mark.parametrize("state", sorted(states().all))
def test_rank_is_that_of_the_list_and_none_for_what_is_no_state(state: str) -> None:
    row = named(EVENTS_TABLE, event_row(status(state=state)))
    assert row["rank"] == states().rank.get(state, -1)


def test_fact_about_the_whole_has_no_message_and_no_latency() -> None:
    row = named(EVENTS_TABLE, event_row(status()))
    assert (row["message_id"], row["latency_ms"], row["source_offset"]) == (NO_ID, -1, -1)
    assert named(EVENTS_TABLE, event_row(status(latency_ms=0)))["latency_ms"] == 0


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="tombstone"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00\x00\x00\x00\x63rest", id="another schema"),
        pytest.param(request() + b"x", id="trailing byte"),
        pytest.param(request(notification_id="nope"), id="no uuid"),
        pytest.param(request(notification_id=str(uuid4())), id="uuid of another version"),
        pytest.param(request(notification_id=NID[:19] + "0" + NID[20:]), id="another variant"),
    ],
)
def test_what_is_no_request_is_refused(value: bytes | None) -> None:
    with pytest.raises(DecodeError):
        request_row(value, "normal")


@pytest.mark.parametrize(
    "wrong",
    [{"state": "teleported"}, {"notification_id": str(uuid4())}, {"event_id": "x"}, {"message_id": "y"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_is_no_fact_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(DecodeError):
        event_row(status(**wrong))


def test_time_beyond_the_store_is_its_last() -> None:
    for moment in (MAX_TIME_MS + 1, (1 << 48) - 1):
        row = named(REQUESTS_TABLE, request_row(request(notification_id=ids.notification_id(moment, "t")), "normal"))
        assert row["accepted_at"] == MAX_TIME_MS
    assert named(EVENTS_TABLE, event_row(status(occurred_at=-5)))["occurred_at"] == 0
    assert named(EVENTS_TABLE, event_row(status(occurred_at=1 << 62)))["occurred_at"] == MAX_TIME_MS


def test_receipt_leaves_the_providers_words_behind() -> None:
    value = {
        "event_id": str(UUID(int=1)),
        "provider": "sms-1",
        "provider_message_id": "SM1",
        "message_id": None,
        "state": "delivered",
        "reason": None,
        "code": None,
        "occurred_at": NOW,
        "received_at": NOW,
        "raw": b"To=+491700000000",
    }
    row = receipt_row(codec("ProviderReceipt").encode(value))
    assert "4917" not in repr(row)
    assert named(RECEIPTS_TABLE, row)["provider_message_id"] == "SM1"


def test_letter_keeps_its_bytes_whatever_its_ids_are() -> None:
    value = {
        "dead_letter_id": str(UUID(int=1)),
        "topic": "t",
        "partition": 1,
        "offset": 2,
        "key": None,
        "value": b"\xff\x00",
        "headers": [],
        "stage": "router",
        "reason": "undecodable",
        "error_class": "DecodeError",
        "detail": None,
        "attempts": 1,
        "tenant": None,
        "notification_id": "not an id",
        "message_id": None,
        "occurred_at": NOW,
    }
    row = named(DEAD_LETTERS_TABLE, dead_letter_row(codec("DeadLetter").encode(value)))
    assert (row["value"], row["key"], row["notification_id"]) == (b"\xff\x00", b"", NO_ID)


@given(st.text(max_size=40) | st.uuids().map(str) | st.uuids().map(lambda u: u.hex) | st.uuids().map(lambda u: u.urn))
def test_ids_are_read_as_uuids_are(text: str) -> None:
    try:
        expected = UUID(text).bytes
    except ValueError:
        with pytest.raises(DecodeError):
            id_bytes(text)
    else:
        assert id_bytes(text) == expected


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 48) - 1))
def test_ids_sort_by_time(one: int, other: int) -> None:
    first, second = (id_bytes(ids.notification_id(moment, "t")) for moment in (one, other))
    assert (first[:6] < second[:6]) == (one < other)


@given(st.binary(max_size=300), st.sampled_from(sorted(SOURCES)))
def test_any_bytes_are_a_row_or_refused(value: bytes, topic: str) -> None:
    prefix = codec(catalogue()[topic].record)
    for raw in (value, b"\x00" + prefix.schema_id.to_bytes(4, "big") + value):
        try:
            table, row = row_of(ConsumerRecord(topic, 0, 0, 0, None, raw))
        except DecodeError:
            continue
        assert len(row) == len(table.columns)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempt": 1 << 31},
        {"template_version": -(1 << 31) - 1},
        {"latency_ms": 1 << 40},
        {"source": {"topic": "t", "partition": 1 << 31, "offset": 0}},
        {"source": {"topic": "t", "partition": -(1 << 40), "offset": 0}},
    ],
    ids=str,
)
def test_number_too_large_for_its_column_is_refused(wrong: dict[str, Any]) -> None:
    whole = {**codec("DeliveryStatus").decode(status()), **wrong}
    out = BytesIO(status()[:5])
    out.seek(5)
    fastavro.schemaless_writer(out, _wide(plain_schema("DeliveryStatus")), whole)
    with pytest.raises(DecodeError):
        event_row(out.getvalue())


def _wide(schema: Any) -> Any:
    """The schema of a writer that takes every int for a long."""
    if isinstance(schema, dict):
        return {name: _wide(value) for name, value in schema.items()}
    if isinstance(schema, list):
        return [_wide(value) for value in schema]
    return "long" if schema == "int" else schema


# -- what is decodable and hostile in every value ---------------------------------------------------------------------

_UUIDS = st.uuids().map(str)
_ODD_IDS = st.one_of(_UUIDS, _UUIDS.map(str.upper), _UUIDS.map(lambda text: text.replace("-", "")), HOSTILE_TEXT)
_NOTIFICATIONS = st.integers(0, (1 << 48) - 1).map(lambda moment: ids.notification_id(moment, "t"))
_KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "notification_id": st.one_of(_NOTIFICATIONS, _NOTIFICATIONS, _ODD_IDS),
    "event_id": st.one_of(_UUIDS, _ODD_IDS),
    "message_id": st.one_of(_UUIDS, _ODD_IDS),
    "dead_letter_id": st.one_of(_UUIDS, _ODD_IDS),
    "state": st.one_of(st.sampled_from(sorted(states().all)), HOSTILE_TEXT),
}
_INTS = {"Int8": 7, "Int32": 31, "Int64": 63}


def fits(value: Any, kind: str) -> bool:
    """Whether the store has a place for a value in a column of this type."""
    if kind.startswith("Array("):
        return isinstance(value, list) and all(fits(item, kind[6:-1]) for item in value)
    if kind.startswith("Tuple("):
        kinds = [part.split()[1] for part in kind[6:-1].split(", ")]
        return isinstance(value, tuple) and all(map(fits, value, kinds))
    if kind.startswith("LowCardinality("):
        return fits(value, kind[15:-1])
    if kind == "FixedString(16)":
        return isinstance(value, bytes) and len(value) == 16
    if kind == "String":
        return isinstance(value, bytes) or (isinstance(value, str) and value.encode() is not None)
    if kind == "Bool":
        return isinstance(value, bool)
    if kind.startswith("DateTime64"):
        return isinstance(value, int) and 0 <= value <= MAX_TIME_MS
    return isinstance(value, int) and -(1 << _INTS[kind]) <= value < 1 << _INTS[kind]


@pytest.mark.parametrize("topic", sorted(SOURCES))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_hostile_record_is_a_row_that_the_store_takes_or_one_letter(topic: str, data: st.DataObject) -> None:
    name = SOURCES[topic].name
    fields = {field["name"] for field in plain_schema(name)["fields"]}
    known = {field: strategy for field, strategy in _KNOWN.items() if field in fields}
    value = codec(name).encode(data.draw(hostile_records(name, **known)))
    record = ConsumerRecord(topic, 0, 0, 0, None, value)
    try:
        table, row = row_of(record)
    except DecodeError as exc:
        dead_letter = dead_letter_record(record, stage="sink", reason="undecodable", error=exc, now=NOW)
        assert dead_letter_row(dead_letter.value)
        return
    wrong = [column for (column, kind), cell in zip(table.columns.items(), row, strict=True) if not fits(cell, kind)]
    assert wrong == []


def test_every_topic_that_names_the_sink_has_a_table() -> None:
    assert {name for name, topic in catalogue().items() if "sink" in topic.consumers} <= set(SOURCES)
