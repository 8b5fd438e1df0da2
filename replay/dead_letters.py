"""Dead letters: which are selected, what is in one, and how many there are of each kind.

May import runtime and schemas. Never: how one is stored or published, a screen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from replay.redrive import refusal
from replay.store import ReplayStore, StoredDeadLetter
from replay.times import parse_time
from replay.where import DEAD_LETTER_COLUMNS, Condition, compile_where
from runtime.clock import system_clock
from runtime.status import rfc3339
from schemas.channels import CONTACT_FIELDS, PARTS
from schemas.codec import DecodeError, codec
from schemas.topics import catalogue

_SECRET = frozenset(
    {
        *CONTACT_FIELDS,
        *PARTS,
        "address",
        "value",
        "content",
        "overrides",
        "metadata",
        "token",
        "name",
        "subscription",
        "raw",
    }
)
OPEN = ("open", "failed_again")
"""States of letters that wait for somebody, as the view dead_letters names them."""
HIDDEN = "(hidden; --reveal shows it)"


def selected(
    store: ReplayStore,
    where: str | None,
    stage: str | None,
    reason: str | None,
    tenant: str | None,
    since: str,
    until: str,
    *,
    closed: bool = False,
) -> Iterator[StoredDeadLetter]:
    """The letters between two times as operators write them: those that wait for somebody, with `closed` all.

    Raises UsageError.
    """
    now = system_clock()
    condition = _condition(where, stage, reason, tenant, now, closed)
    return store.dead_letters(parse_time(since, now), parse_time(until, now) + 1, condition)


def _condition(
    where: str | None, stage: str | None, reason: str | None, tenant: str | None, now: int, closed: bool
) -> Condition:
    written = compile_where(where, DEAD_LETTER_COLUMNS, now)
    sql, parameters = [written.sql], dict(written.parameters)
    if not closed:
        sql.append("letter_state IN {open:Array(String)}")
        parameters["open"] = list(OPEN)
    for column, value in (("stage", stage), ("reason", reason), ("tenant", tenant)):
        if value is not None:
            sql.append(f"`{column}` = {{{column}:String}}")
            parameters[column] = value
    return Condition(" AND ".join(sql), parameters)


def filter_words(where: str | None, stage: str | None, reason: str | None) -> str:
    """The filter in words, for the record of a redrive."""
    words = [f"{name} = '{value}'" for name, value in (("stage", stage), ("reason", reason)) if value is not None]
    return " AND ".join([*words, *([f"({where})" if words else where] if where else [])])


def listed(dead_letters: Iterator[StoredDeadLetter], limit: int) -> list[dict[str, Any]]:
    """The first `limit` of them, a row each."""
    found: list[dict[str, Any]] = []
    for dead_letter in dead_letters:
        if len(found) >= limit:
            break
        found.append(
            {
                "id": dead_letter.dead_letter_id,
                "occurred_at": rfc3339(dead_letter.occurred_at),
                "state": dead_letter.state,
                "stage": dead_letter.stage,
                "topic": dead_letter.record.topic,
                "reason": dead_letter.reason,
                "error": dead_letter.error_class,
                "detail": dead_letter.detail,
                "attempts": dead_letter.attempts,
                "notification_id": dead_letter.notification_id,
                "message_id": dead_letter.message_id,
            }
        )
    return found


def counted(dead_letters: Iterator[StoredDeadLetter]) -> list[dict[str, Any]]:
    """How many by state, stage, topic, reason and error, the most frequent first, with an example."""
    counts: Counter[tuple[str, ...]] = Counter()
    latest: dict[tuple[str, ...], StoredDeadLetter] = {}
    for dead_letter in dead_letters:
        group = (
            dead_letter.state,
            dead_letter.stage,
            dead_letter.record.topic,
            dead_letter.reason,
            dead_letter.error_class,
        )
        counts[group] += 1
        if group not in latest or latest[group].occurred_at < dead_letter.occurred_at:
            latest[group] = dead_letter
    return [
        {
            **dict(zip(("state", "stage", "topic", "reason", "error"), group, strict=True)),
            "count": count,
            "latest": rfc3339(latest[group].occurred_at),
            "detail": latest[group].detail,
            "example": latest[group].dead_letter_id,
        }
        for group, count in counts.most_common()
    ]


def described(dead_letter: StoredDeadLetter, reveal: bool) -> dict[str, Any]:
    """A letter for people and programs."""
    record = dead_letter.record
    found: dict[str, Any] = {
        "id": dead_letter.dead_letter_id,
        "occurred_at": rfc3339(dead_letter.occurred_at),
        "state": dead_letter.state,
        "stage": dead_letter.stage,
        "reason": dead_letter.reason,
        "error": dead_letter.error_class,
        "detail": dead_letter.detail,
        "attempts": dead_letter.attempts,
        "tenant": dead_letter.tenant,
        "notification_id": dead_letter.notification_id,
        "message_id": dead_letter.message_id,
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "key": None if record.key is None else record.key.decode("utf-8", "backslashreplace"),
        "redrive": refusal(dead_letter) or "possible",
    }
    topic = catalogue().get(record.topic)
    try:
        if topic is None:
            raise DecodeError("its topic is not ours")
        found["record"] = _plain(codec(topic.record).decode(record.value), reveal)
    except DecodeError as exc:
        found["does not decode"] = str(exc)
        found["bytes"] = (record.value or b"").hex()
    return found


def _plain(value: Any, reveal: bool) -> Any:
    """Avro's values as JSON has them, without what says who or what."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if not reveal and key in _SECRET and item not in (None, "", b"", {}) else _plain(item, reveal)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_plain(item, reveal) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value
