"""What a replay reads from ClickHouse, and what it writes down about itself there.

May import sinks.clickhouse. Never: a Kafka client, a decision.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from uuid import UUID

from replay.journal import item_records, state_record
from replay.plan import Item, RecordPosition, StoredMessage
from replay.progress import Replay
from replay.times import UsageError
from replay.where import Condition
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import ClickHouseSettings
from runtime.status import rfc3339
from sinks import clickhouse

_MARK = "true AS selected"
_NONE = bytes(16)
_IDS_PER_QUERY = 200
"""Of one hour; for more the whole hour is read."""
_TENANTS_PER_QUERY = 50
PAGE = 5_000
_BYTES: dict[str, str | dict[str, str]] = {"key": "bytes", "value": "bytes"}

_REPLAY_COLUMNS = {
    "replay_id": "FixedString(16)",
    "command": "LowCardinality(String)",
    "topic": "LowCardinality(String)",
    "from_at": "DateTime64(3, 'UTC')",
    "to_at": "DateTime64(3, 'UTC')",
    "filter": "String",
    "template": "String",
    "tenant": "LowCardinality(String)",
    "requested_by": "String",
    "planned": "UInt64",
    "published": "UInt64",
    "gone": "UInt64",
    "counts": "String",
    "state": "LowCardinality(String)",
    "error": "String",
    "note": "String",
    "started_at": "DateTime64(3, 'UTC')",
    "updated_at": "DateTime64(3, 'UTC')",
    "finished_at": "DateTime64(3, 'UTC')",
    "version": "UInt64",
}
_ITEM_COLUMNS = {
    "replay_id": "FixedString(16)",
    "seq": "UInt64",
    "topic": "LowCardinality(String)",
    "partition": "Int32",
    "offset": "Int64",
    "tenant": "LowCardinality(String)",
    "notification_id": "FixedString(16)",
    "message_id": "FixedString(16)",
    "letter_id": "FixedString(16)",
    "channels": "Array(LowCardinality(String))",
    "generation": "Int32",
    "attempt": "Int32",
    "possible_duplicate": "Bool",
    "planned_at": "DateTime64(3, 'UTC')",
}


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter as ClickHouse keeps it."""

    dead_letter_id: str
    record: ConsumerRecord
    stage: str
    reason: str
    error_class: str
    detail: str
    attempts: int
    tenant: str
    notification_id: str | None
    message_id: str | None
    occurred_at: int
    state: str = "open"
    """What became of it: open, redriven, sent_since, failed_again or dismissed."""


class ReplayStore:
    """Questions and notes; one thread. Every call raises UnavailableError or StoreError.

    What is written down goes to its topic first, by `publish` (which waits and may raise PublishError), and then to ClickHouse:
    the sink stores it once more, which changes nothing, and a rebuilt store has it.
    """

    def __init__(
        self, settings: ClickHouseSettings, publish: Callable[[Sequence[ProducerRecord]], None] | None = None
    ) -> None:
        self._settings, self._publish = settings, publish
        self._client = clickhouse.connect(settings, timeout_s=120)

    def close(self) -> None:
        self._client.close()

    def _query(
        self, name: str, parameters: Mapping[str, Any], condition: Condition | None = None
    ) -> list[dict[str, Any]]:
        return list(self._stream(name, parameters, condition))

    def _stream(
        self, name: str, parameters: Mapping[str, Any], condition: Condition | None = None
    ) -> Iterator[dict[str, Any]]:
        """Rows as they come: an hour may have a million."""
        text = clickhouse.query_text(name, self._settings.internal_database)
        if condition is not None:
            assert text.count(_MARK) == 1
            text = text.replace(_MARK, f"{condition.sql} AS selected")
            parameters = {**parameters, **condition.parameters}
        formats = _BYTES if name.startswith("dead_letters") else None
        with (
            clickhouse.store_errors(self._settings),
            self._client.query_rows_stream(text, parameters=dict(parameters), column_formats=formats) as rows,
        ):
            names = rows.source.column_names
            for row in rows:
                yield dict(zip(names, row, strict=True))

    # -- what is known ----------------------------------------------------------------------------------------------

    def stored_messages(
        self, hour: int, tenants: Iterable[str], notification_ids: set[str], condition: Condition
    ) -> dict[str, list[StoredMessage]]:
        """The messages of these notifications of one hour, by notification; all with `selected` by the condition."""
        few = [_hex(nid) for nid in notification_ids] if len(notification_ids) <= _IDS_PER_QUERY else []
        some = sorted(set(tenants))
        parameters = {"hour": hour, "tenants": some if len(some) <= _TENANTS_PER_QUERY else [], "ids": few}
        found: dict[str, list[StoredMessage]] = {}
        for row in self._stream("replay_subjects", parameters, condition):
            nid = str(UUID(row["id"]))
            if nid in notification_ids:
                stored = StoredMessage(
                    nid,
                    row["message"] or None,
                    row["channel"],
                    row["state"],
                    row["reason"],
                    row["attempts"],
                    row["template_version"],
                    row["possible_duplicate"],
                    bool(row["selected"]),
                    row["provider"],
                )
                found.setdefault(nid, []).append(stored)
        return found

    def generations(self, hour: int) -> dict[str, int]:
        """The highest known generation of notifications of an hour, where it is not the first."""
        return {
            str(UUID(row["id"])): int(row["generation"]) for row in self._query("replay_generations", {"hour": hour})
        }

    # -- dead letters -----------------------------------------------------------------------------------------------

    def dead_letters(self, since: int, until: int, condition: Condition) -> Iterator[StoredDeadLetter]:
        """Every dead letter of a stretch of time that the condition selects, in the order of the table."""
        after: dict[str, Any] = {"after_topic": "", "after_partition": -1, "after_offset": -1, "after_id": ""}
        while True:
            rows = self._query("dead_letters_page", {"since": since, "until": until, "limit": PAGE, **after}, condition)
            for row in rows:
                yield _dead_letter(row["raw_id"], row, _ms(row["occurred_at"]))
            if len(rows) < PAGE:
                return
            last = rows[-1]
            after = {
                "after_topic": last["topic"],
                "after_partition": last["partition"],
                "after_offset": last["offset"],
                "after_id": last["raw_id"],
            }

    def dead_letters_by_id(
        self, dead_letter_ids: Sequence[str], topics: Iterable[str] = ()
    ) -> dict[str, StoredDeadLetter]:
        """Dead letters by their ids."""
        parameters = {
            "ids": [_hex(dead_letter_id) for dead_letter_id in dead_letter_ids],
            "topics": sorted(set(topics)),
        }
        rows = self._query("dead_letters_by_id", parameters)
        dead_letters = [_dead_letter(row["id"], row, row["occurred_at"]) for row in rows]
        return {dead_letter.dead_letter_id: dead_letter for dead_letter in dead_letters}

    # -- the replay itself ------------------------------------------------------------------------------------------

    def write(self, replay: Replay) -> None:
        """The replay as it stands now."""
        assert self._publish is not None, "a store that was opened for questions"
        self._publish([state_record(replay)])
        row = [
            UUID(replay.replay_id).bytes,
            replay.command,
            replay.topic,
            replay.from_at,
            replay.to_at,
            replay.filter,
            replay.template,
            replay.tenant,
            replay.requested_by,
            replay.planned,
            replay.published,
            replay.gone,
            replay.counts,
            replay.state,
            replay.error,
            replay.note,
            replay.started_at,
            replay.updated_at,
            replay.finished_at,
            replay.updated_at,
        ]
        self._insert("replays_raw", _REPLAY_COLUMNS, [[value] for value in row])

    def write_items(self, replay_id: str, items: Sequence[Item], now: int) -> None:
        """The plan. Written before the replay's own row: a replay that is known has a whole plan."""
        assert self._publish is not None, "a store that was opened for questions"
        for start in range(0, len(items), 50_000):
            chunk = items[start : start + 50_000]
            count = len(chunk)
            self._publish(list(item_records(replay_id, chunk, start, now)))
            self._insert(
                "replay_items",
                _ITEM_COLUMNS,
                [
                    [UUID(replay_id).bytes] * count,
                    list(range(start, start + count)),
                    [i.position.topic for i in chunk],
                    [i.position.partition for i in chunk],
                    [i.position.offset for i in chunk],
                    [i.tenant for i in chunk],
                    [_id(i.notification_id) for i in chunk],
                    [_id(i.message_id) for i in chunk],
                    [_id(i.dead_letter_id) for i in chunk],
                    [list(i.channels) for i in chunk],
                    [i.generation for i in chunk],
                    [i.attempt for i in chunk],
                    [i.possible_duplicate for i in chunk],
                    [now] * count,
                ],
            )

    def _insert(self, table: str, columns: Mapping[str, str], data: Sequence[Sequence[Any]]) -> None:
        clickhouse.insert(self._settings, self._client, table, columns, data)

    def items(self, replay_id: str, first: int, limit: int) -> list[Item]:
        """The plan from a place on."""
        rows = self._query("replay_items", {"replay": _hex(replay_id), "first": first, "limit": limit})
        return [
            Item(
                RecordPosition(row["topic"], row["partition"], row["offset"]),
                row["tenant"],
                _text_id(row["notification_id"]),
                _text_id(row["message_id"]),
                _text_id(row["letter_id"]),
                tuple(row["channels"]),
                row["generation"],
                row["attempt"],
                row["possible_duplicate"],
            )
            for row in rows
        ]

    def find(self, text: str) -> Replay:
        """A replay by its id. Raises UsageError when there is none."""
        try:
            replay_id = str(UUID(text))
        except ValueError as exc:
            raise UsageError(f"{text!r} is not the id of a replay; `heliograph replay list` shows them") from exc
        rows = self._query("replays", {"id": replay_id, "limit": 1})
        if not rows:
            raise UsageError(f"there is no replay {replay_id}; `heliograph replay list` shows those there are")
        row = rows[0]
        times = ("from_at", "to_at", "started_at", "updated_at", "finished_at")
        fields: dict[str, Any] = {name: _ms(row[name]) for name in times}
        words = (
            "command",
            "topic",
            "filter",
            "template",
            "tenant",
            "requested_by",
            "planned",
            "published",
            "gone",
            "counts",
            "state",
            "error",
            "note",
        )
        return Replay(replay_id, **fields, **{name: row[name] for name in words})

    def outcomes(self, replay: Replay) -> dict[str, int]:
        """Messages by what became of them since, and `twice`: those that somebody has a second time."""
        parameters = {
            "replay": _hex(replay.replay_id),
            "published": replay.published,
            "started": replay.started_at,
            "resend": replay.command == "resend",
        }
        rows = self._query("replay_outcomes", parameters)
        return {**{row["outcome"]: row["messages"] for row in rows}, "twice": rows[0]["twice"] if rows else 0}

    def replays(self, limit: int) -> list[dict[str, Any]]:
        """The latest replays as people read them."""
        rows = self._query("replays", {"id": "", "limit": limit})
        for row in rows:
            row["counts"] = json.loads(row["counts"] or "{}")
            for name in ("from_at", "to_at", "started_at", "updated_at", "finished_at"):
                moment = row[name]
                row[name] = rfc3339(_ms(moment)) if moment else None
        return rows


def _dead_letter(hex_id: str, row: Mapping[str, Any], occurred_at: int) -> StoredDeadLetter:
    record = ConsumerRecord(
        row["topic"],
        row["partition"],
        row["offset"],
        occurred_at,
        bytes(row["key"]) or None,
        bytes(row["value"]) or None,
    )
    return StoredDeadLetter(
        str(UUID(hex_id)),
        record,
        row["stage"],
        row["reason"],
        row["error_class"],
        row["detail"],
        row["attempts"],
        row["tenant"],
        _or_none(row["notification_id"]),
        _or_none(row["message_id"]),
        occurred_at,
        row["letter_state"],
    )


def _or_none(value: Any) -> str | None:
    return str(value) if value else None


def _ms(moment: Any) -> int:
    """The driver gives times of UTC without a zone."""
    return round(moment.replace(tzinfo=UTC).timestamp() * 1000) if moment else 0


def _hex(text: str) -> str:
    return UUID(text).hex


def _id(text: str | None) -> bytes:
    return UUID(text).bytes if text else _NONE


def _text_id(digits: str) -> str | None:
    raw = UUID(digits)
    return str(raw) if raw.int else None
