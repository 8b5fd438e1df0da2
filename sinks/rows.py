"""A record becomes one row of one table; pure.

    notify.requests.<lane>.v1   NotificationRequest → requests_raw           the lane is the topic's
    notify.status.v1            DeliveryStatus      → delivery_events_raw    with the rank of schemas/reasons.yaml
    notify.receipts.v1          ProviderReceipt     → receipts_raw
    notify.recipients.v1        RecipientProfile    → preferences_raw        what it refuses, nothing else of it
    notify.deadletters.v1       DeadLetter          → dead_letters_raw
    notify.conditions.v1        Condition           → conditions_raw
    notify.replays.v1           ReplayState         → replays_raw
    notify.replayitems.v1       ReplayItem          → replay_items

The same record gives the same row at any time. May import schemas. Never: addresses, data, content,
metadata, idempotency keys (only dead letters keep a record's bytes, for as long as their topic does); a clock, a store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from uuid import UUID

from runtime.records import ConsumerRecord
from schemas.codec import DecodeError, codec
from schemas.events import LANES, RecordName, states
from schemas.topics import (
    CONDITIONS,
    DEAD_LETTERS,
    RECEIPTS,
    RECIPIENTS,
    REPLAY_ITEMS,
    REPLAYS,
    STATUS,
    requests_topic,
)

Row = tuple[Any, ...]

MAX_TIME_MS = 4_102_444_799_999
"""The last millisecond of 2099. A later time, which only a made-up id or clock has, counts as this one."""
NO_ID = bytes(16)
NO_LATENCY = -1
NO_RANK = -1
_INT_LIMIT, _LONG_LIMIT = 1 << 31, 1 << 63

_ID, _TEXT, _WORD, _TIME, _INT, _LONG, _BOOL, _COUNT = (
    "FixedString(16)",
    "String",
    "LowCardinality(String)",
    "DateTime64(3, 'UTC')",
    "Int32",
    "Int64",
    "Bool",
    "UInt64",
)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A raw table: its columns with their types, in the order of a row.

    `undecoded`: its rows can be made by the store too, by inserts/<name>.sql, which says the same as the function here.
    """

    name: str
    columns: Mapping[str, str]
    undecoded: bool = True


STORED_AT: Mapping[str, str] = MappingProxyType({"stored_at": _TIME})
"""What each table has beside its columns: when the row was inserted, by the clock of whoever made the row."""


def _table(name: str, /, *, undecoded: bool = True, **columns: str) -> Table:
    return Table(name, MappingProxyType(columns), undecoded)


REQUESTS_TABLE = _table(
    "requests_raw",
    tenant=_WORD,
    notification_id=_ID,
    accepted_at=_TIME,
    lane=_WORD,
    category=_WORD,
    template_id=_WORD,
    template_version=_INT,
    strategy=_WORD,
    delivery=_WORD,
    tags="Array(String)",
    source=_TEXT,
    correlation_id=_TEXT,
    user_id=_TEXT,
    keyed=_BOOL,
    expires_at=_TIME,
    send_at=_TIME,
    dry_run=_BOOL,
    channels="Array(LowCardinality(String))",
    generation=_INT,
)
EVENTS_TABLE = _table(
    "delivery_events_raw",
    tenant=_WORD,
    notification_id=_ID,
    message_id=_ID,
    event_id=_ID,
    accepted_at=_TIME,
    channel=_WORD,
    lane=_WORD,
    state=_WORD,
    rank="Int8",
    reason=_WORD,
    detail=_TEXT,
    attempt=_INT,
    provider=_WORD,
    provider_message_id=_TEXT,
    possible_duplicate=_BOOL,
    template_id=_WORD,
    template_version=_INT,
    preference_version=_LONG,
    occurred_at=_TIME,
    latency_ms=_INT,
    correlation_id=_TEXT,
    source_topic=_WORD,
    source_partition=_INT,
    source_offset=_LONG,
    recipient=_TEXT,
    category=_WORD,
    locale=_WORD,
    domain=_WORD,
    code=_WORD,
    due_at=_TIME,
)
RECEIPTS_TABLE = _table(
    "receipts_raw",
    event_id=_ID,
    provider=_WORD,
    provider_message_id=_TEXT,
    message_id=_ID,
    state=_WORD,
    reason=_WORD,
    code=_WORD,
    occurred_at=_TIME,
    received_at=_TIME,
)
PREFERENCES_TABLE = _table(
    "preferences_raw",
    undecoded=False,
    tenant=_WORD,
    user_id=_TEXT,
    profile_version=_LONG,
    changed_at=_TIME,
    opted_out="Array(Tuple(category String, channel String))",
)
DEAD_LETTERS_TABLE = _table(
    "dead_letters_raw",
    undecoded=False,
    dead_letter_id=_ID,
    topic=_WORD,
    partition=_INT,
    offset=_LONG,
    key=_TEXT,
    value=_TEXT,
    stage=_WORD,
    reason=_WORD,
    error_class=_WORD,
    detail=_TEXT,
    attempts=_INT,
    tenant=_WORD,
    notification_id=_ID,
    message_id=_ID,
    occurred_at=_TIME,
)

CONDITIONS_TABLE = _table(
    "conditions_raw",
    undecoded=False,
    subject=_WORD,
    name=_TEXT,
    channel=_WORD,
    process=_TEXT,
    condition=_WORD,
    detail=_TEXT,
    since=_TIME,
    next_at=_TIME,
    stated_at=_TIME,
)
REPLAYS_TABLE = _table(
    "replays_raw",
    undecoded=False,
    replay_id=_ID,
    command=_WORD,
    topic=_WORD,
    from_at=_TIME,
    to_at=_TIME,
    filter=_TEXT,
    template=_TEXT,
    tenant=_WORD,
    requested_by=_TEXT,
    planned=_COUNT,
    published=_COUNT,
    gone=_COUNT,
    counts=_TEXT,
    state=_WORD,
    error=_TEXT,
    note=_TEXT,
    started_at=_TIME,
    updated_at=_TIME,
    finished_at=_TIME,
    version=_COUNT,
)
REPLAY_ITEMS_TABLE = _table(
    "replay_items",
    undecoded=False,
    replay_id=_ID,
    seq=_COUNT,
    topic=_WORD,
    partition=_INT,
    offset=_LONG,
    tenant=_WORD,
    notification_id=_ID,
    message_id=_ID,
    letter_id=_ID,
    channels="Array(LowCardinality(String))",
    generation=_INT,
    attempt=_INT,
    possible_duplicate=_BOOL,
    planned_at=_TIME,
)

_RANKS = {**dict.fromkeys(states().all, NO_RANK), **states().rank}


def id_bytes(text: str) -> bytes:
    """The 16 bytes of an id, most significant first. Raises DecodeError."""
    # Canonical ids are nearly all there are, and UUID() takes five times as long for them.
    if len(text) == 36 and text[8] == text[13] == text[18] == text[23] == "-":
        digits = text.replace("-", "")
        if len(digits) == 32 and digits.isalnum() and digits.isascii():
            try:
                return bytes.fromhex(digits)
            except ValueError as exc:
                raise DecodeError("an id is not a UUID") from exc
    try:
        return UUID(text).bytes
    except ValueError as exc:
        raise DecodeError("an id is not a UUID") from exc


def _id_or_none(text: str | None) -> bytes:
    return NO_ID if text is None else id_bytes(text)


def _notification(text: str) -> tuple[bytes, int]:
    """A notification's id and the time in it."""
    raw = id_bytes(text)
    if raw[6] >> 4 != 7 or raw[8] >> 6 != 2:
        raise DecodeError("notification_id is not a UUIDv7")
    return raw, min(int.from_bytes(raw[:6], "big"), MAX_TIME_MS)


def _time(milliseconds: int | None) -> int:
    """A time that the store can hold; 0 for none."""
    return 0 if milliseconds is None else min(max(milliseconds, 0), MAX_TIME_MS)


def _int(value: int) -> int:
    """A number for Int32. The decoder reads numbers of any size, and one too large would fail every insert after it."""
    if not -_INT_LIMIT <= value < _INT_LIMIT:
        raise DecodeError("an int is larger than 32 bits")
    return value


def _long(value: int) -> int:
    """A number for Int64."""
    if not -_LONG_LIMIT <= value < _LONG_LIMIT:
        raise DecodeError("a long is larger than 64 bits")
    return value


_read_request = codec("NotificationRequest").reader(
    "notification_id",
    "tenant",
    "category",
    "template_id",
    "template_version",
    "strategy",
    "delivery",
    "tags",
    "source",
    "correlation_id",
    "user_id",
    "idempotency_key",
    "expires_at",
    "send_at",
    "dry_run",
    "channels",
    "generation",
)


def request_row(value: bytes | None, lane: str) -> Row:
    """The row of a NotificationRequest. Raises DecodeError."""
    (
        notification_id,
        tenant,
        category,
        template_id,
        template_version,
        strategy,
        delivery,
        tags,
        source,
        correlation_id,
        user_id,
        idempotency_key,
        expires_at,
        send_at,
        dry_run,
        channels,
        generation,
    ) = _read_request(value)
    raw, accepted_at = _notification(notification_id)
    return (
        tenant,
        raw,
        accepted_at,
        lane,
        category,
        template_id or "",
        template_version or 0,
        strategy,
        delivery,
        tags,
        source,
        correlation_id or "",
        user_id or "",
        idempotency_key is not None,
        _time(expires_at),
        _time(send_at),
        dry_run,
        channels,
        generation,
    )


_read_status = codec("DeliveryStatus").reader(
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
    "recipient",
    "category",
    "locale",
    "domain",
    "code",
    "due_at",
)
_NO_SOURCE = ("", -1, -1)


def event_row(value: bytes | None) -> Row:
    """The row of a DeliveryStatus. Raises DecodeError, also for a state outside the closed list."""
    (
        event_id,
        notification_id,
        message_id,
        tenant,
        channel,
        lane,
        state,
        reason,
        detail,
        attempt,
        provider,
        provider_message_id,
        possible_duplicate,
        template_id,
        template_version,
        preference_version,
        occurred_at,
        latency_ms,
        source,
        correlation_id,
        recipient,
        category,
        locale,
        domain,
        code,
        due_at,
    ) = _read_status(value)
    raw, accepted_at = _notification(notification_id)
    rank = _RANKS.get(state)
    if rank is None:
        raise DecodeError("the state is not one of schemas/reasons.yaml")
    topic, partition, offset = source or _NO_SOURCE
    return (
        tenant,
        raw,
        _id_or_none(message_id),
        id_bytes(event_id),
        accepted_at,
        channel or "",
        lane,
        state,
        rank,
        reason or "",
        detail or "",
        attempt,
        provider or "",
        provider_message_id or "",
        possible_duplicate,
        template_id or "",
        template_version or 0,
        preference_version or 0,
        _time(occurred_at),
        NO_LATENCY if latency_ms is None else latency_ms,
        correlation_id or "",
        topic,
        partition,
        offset,
        recipient or "",
        category or "",
        locale or "",
        domain or "",
        code or "",
        _time(due_at),
    )


def receipt_row(value: bytes | None) -> Row:
    """The row of a ProviderReceipt, without the provider's own words (`raw` may hold addresses). Raises DecodeError."""
    receipt = codec("ProviderReceipt").decode(value)
    return (
        id_bytes(receipt["event_id"]),
        receipt["provider"],
        receipt["provider_message_id"],
        _id_or_none(receipt["message_id"]),
        receipt["state"],
        receipt["reason"] or "",
        receipt["code"] or "",
        _time(receipt["occurred_at"]),
        _time(receipt["received_at"]),
    )


def dead_letter_row(value: bytes | None) -> Row:
    """The row of a DeadLetter, with the record's bytes. Raises DecodeError."""
    dead_letter = codec("DeadLetter").decode(value)
    return (
        id_bytes(dead_letter["dead_letter_id"]),
        dead_letter["topic"],
        _int(dead_letter["partition"]),
        _long(dead_letter["offset"]),
        dead_letter["key"] or b"",
        dead_letter["value"] or b"",
        dead_letter["stage"],
        dead_letter["reason"],
        dead_letter["error_class"],
        dead_letter["detail"] or "",
        _int(dead_letter["attempts"]),
        dead_letter["tenant"] or "",
        _known_id(dead_letter["notification_id"]),
        _known_id(dead_letter["message_id"]),
        _time(dead_letter["occurred_at"]),
    )


def _count(value: int) -> int:
    """A number for UInt64."""
    if not 0 <= value < _LONG_LIMIT:
        raise DecodeError("a count is negative or larger than 63 bits")
    return value


def condition_row(value: bytes | None) -> Row:
    """The row of a Condition. Raises DecodeError."""
    condition = codec("Condition").decode(value)
    return (
        condition["subject"],
        condition["name"],
        condition["channel"] or "",
        condition["process"],
        condition["state"],
        condition["detail"] or "",
        _time(condition["since"]),
        _time(condition["next_at"]),
        _time(condition["stated_at"]),
    )


def replay_row(value: bytes | None) -> Row:
    """The row of a ReplayState. Raises DecodeError."""
    replay = codec("ReplayState").decode(value)
    return (
        id_bytes(replay["replay_id"]),
        replay["command"],
        replay["topic"],
        _time(replay["from_at"]),
        _time(replay["to_at"]),
        replay["filter"],
        replay["template"],
        replay["tenant"],
        replay["requested_by"],
        _count(replay["planned"]),
        _count(replay["published"]),
        _count(replay["gone"]),
        replay["counts"],
        replay["state"],
        replay["error"],
        replay["note"],
        _time(replay["started_at"]),
        _time(replay["updated_at"]),
        _time(replay["finished_at"]),
        _count(replay["updated_at"]),
    )


def replay_item_row(value: bytes | None) -> Row:
    """The row of a ReplayItem. Raises DecodeError."""
    item = codec("ReplayItem").decode(value)
    return (
        id_bytes(item["replay_id"]),
        _count(item["seq"]),
        item["topic"],
        _int(item["partition"]),
        _long(item["offset"]),
        item["tenant"],
        _id_or_none(item["notification_id"]),
        _id_or_none(item["message_id"]),
        _id_or_none(item["dead_letter_id"]),
        list(item["channels"]),
        _int(item["generation"]),
        _int(item["attempt"]),
        item["possible_duplicate"],
        _time(item["planned_at"]),
    )


def preferences_row(value: bytes | None) -> Row:
    """What a RecipientProfile refuses: (category, channel) pairs, '' for every category. Raises DecodeError."""
    profile = codec("RecipientProfile").decode(value)
    channels, categories = profile["channels"], profile["categories"]
    refused = {("", channel) for channel, allowed in channels.items() if not allowed}
    refused |= {(name, channel) for name, allowed in categories.items() for channel in allowed if not allowed[channel]}
    return (
        profile["tenant"],
        profile["user_id"],
        _long(profile["version"]),
        _time(profile["updated_at"]),
        sorted(refused),
    )


def _known_id(text: str | None) -> bytes:
    """An id of a dead-lettered record: it may be the very thing that is wrong, and the dead letter must still be stored."""
    try:
        return _id_or_none(text)
    except DecodeError:
        return NO_ID


@dataclass(frozen=True, slots=True)
class RowSource:
    """What a topic holds, and how a value of it becomes a row."""

    name: RecordName
    table: Table
    row: Callable[[bytes | None], Row]
    lane: str = ""
    tombstones: bool = False
    """Records without a value are no rows: they remove a key from a compacted topic."""


def _requests(lane: str) -> RowSource:
    return RowSource("NotificationRequest", REQUESTS_TABLE, lambda value: request_row(value, lane), lane)


SOURCES: Mapping[str, RowSource] = MappingProxyType(
    {
        **{requests_topic(lane): _requests(lane) for lane in LANES},
        STATUS: RowSource("DeliveryStatus", EVENTS_TABLE, event_row),
        RECEIPTS: RowSource("ProviderReceipt", RECEIPTS_TABLE, receipt_row),
        RECIPIENTS: RowSource("RecipientProfile", PREFERENCES_TABLE, preferences_row, tombstones=True),
        DEAD_LETTERS: RowSource("DeadLetter", DEAD_LETTERS_TABLE, dead_letter_row),
        CONDITIONS: RowSource("Condition", CONDITIONS_TABLE, condition_row),
        REPLAYS: RowSource("ReplayState", REPLAYS_TABLE, replay_row),
        REPLAY_ITEMS: RowSource("ReplayItem", REPLAY_ITEMS_TABLE, replay_item_row),
    }
)
"""Every topic the sink reads."""

INSERT_CONSTANTS: Mapping[str, str] = MappingProxyType(
    {"states": str(list(_RANKS)), "ranks": str(list(_RANKS.values())), "max_time": str(MAX_TIME_MS)}
)
"""What inserts/*.sql has to know, as SQL writes it."""


def row_of(record: ConsumerRecord) -> tuple[Table, Row]:
    """The table and row of a record from one of SOURCES. Raises DecodeError."""
    source = SOURCES[record.topic]
    return source.table, source.row(record.value)
