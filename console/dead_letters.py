"""`heliograph dlq list|show|redrive`: what was given up, why, and again from where it was given up.

May import typer and console.replay. Never: how a letter is stored or published.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Annotated, Any
from uuid import UUID

import typer

from console.local.settings import StateDir
from console.local.stack import DEFAULT_STATE_DIR
from console.output import show
from console.replay import screen, targets
from console.replay.choose import choose_letters, refusal
from console.replay.commands import (
    DEFAULT_RATE,
    AsJson,
    DryRun,
    Rate,
    Resume,
    Tenant,
    To,
    Where,
    Yes,
    go_on,
    offer,
    report,
)
from console.replay.store import Letter, Replay, ReplayStore
from console.replay.times import UsageError, parse_time
from console.replay.where import LETTER_COLUMNS, Condition, compile_where
from runtime import ids
from runtime.clock import system_clock
from runtime.status import rfc3339
from schemas.codec import DecodeError, codec
from schemas.topics import catalogue

dlq_app = typer.Typer(no_args_is_help=True, help="Dead letters: records that were given up, with the reason.")

KEPT = "-30d"
Stage = Annotated[str | None, typer.Option(help="router, sender, sink, timers, view or ledger.")]
Reason = Annotated[str | None, typer.Option(help="For example retries_exhausted.")]
Since = Annotated[str, typer.Option("--from", metavar="TIME", help="RFC 3339, or how long ago: -2h; all unless given.")]
_SECRET = frozenset(
    {"address", "value", "subject", "text", "html", "title", "body", "data", "content", "overrides", "metadata",
     "email", "phone", "token", "name", "subscription", "raw"}
)  # fmt: skip
HIDDEN = "(hidden; --reveal shows it)"


def _selected(
    store: ReplayStore, where: str | None, stage: str | None, reason: str | None, tenant: str | None, since: str, until: str
) -> Iterator[Letter]:  # fmt: skip
    now = system_clock()
    return store.letters(
        parse_time(since, now), parse_time(until, now) + 1, _condition(where, stage, reason, tenant, now)
    )


def _condition(where: str | None, stage: str | None, reason: str | None, tenant: str | None, now: int) -> Condition:
    written = compile_where(where, LETTER_COLUMNS, now)
    sql, parameters = [written.sql], dict(written.parameters)
    for column, value in (("stage", stage), ("reason", reason), ("tenant", tenant)):
        if value is not None:
            sql.append(f"`{column}` = {{{column}:String}}")
            parameters[column] = value
    return Condition(" AND ".join(sql), parameters)


def _filter_words(where: str | None, stage: str | None, reason: str | None) -> str:
    words = [f"{name} = '{value}'" for name, value in (("stage", stage), ("reason", reason)) if value is not None]
    return " AND ".join([*words, *([f"({where})" if words else where] if where else [])])


@dlq_app.command("list")
def list_letters(
    where: Where = None, stage: Stage = None, reason: Reason = None, tenant: Tenant = None, since: Since = KEPT,
    until: To = "now",
    rows: Annotated[bool, typer.Option("--rows", help="Every letter, not counts.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Of --rows.")] = 1_000,
    state_dir: StateDir = DEFAULT_STATE_DIR, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Count the dead letters by stage, topic and reason, or list them."""
    with closing(ReplayStore(targets.settings_for(state_dir).clickhouse)) as store:
        letters = _selected(store, where, stage, reason, tenant, since, until)
        found = _listed(letters, limit) if rows else _counted(letters)
    show(found, as_json, empty="there are no such dead letters")


def _listed(letters: Iterator[Letter], limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for letter in letters:
        if len(found) >= limit:
            break
        found.append(
            {"id": letter.letter_id, "occurred_at": rfc3339(letter.occurred_at), "stage": letter.stage,
             "topic": letter.record.topic, "reason": letter.reason, "error": letter.error_class, "detail": letter.detail,
             "attempts": letter.attempts, "notification_id": letter.notification_id, "message_id": letter.message_id}
        )  # fmt: skip
    return found


def _counted(letters: Iterator[Letter]) -> list[dict[str, Any]]:
    counts: Counter[tuple[str, str, str, str]] = Counter()
    latest: dict[tuple[str, str, str, str], Letter] = {}
    for letter in letters:
        group = letter.stage, letter.record.topic, letter.reason, letter.error_class
        counts[group] += 1
        if group not in latest or latest[group].occurred_at < letter.occurred_at:
            latest[group] = letter
    return [
        {"stage": group[0], "topic": group[1], "reason": group[2], "error": group[3], "count": count,
         "latest": rfc3339(latest[group].occurred_at), "detail": latest[group].detail, "example": latest[group].letter_id}
        for group, count in counts.most_common()
    ]  # fmt: skip


@dlq_app.command("show")
def show_letter(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="Of a dead letter, as `dlq list --rows` shows it.")],
    reveal: Annotated[bool, typer.Option("--reveal", help="Addresses and contents as well.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Everything about one dead letter: the record as it decodes, else its bytes as hex."""
    try:
        wanted = str(UUID(letter_id))
    except ValueError as exc:
        raise UsageError(
            f"{letter_id!r} is not the id of a dead letter; `heliograph dlq list --rows` shows them"
        ) from exc
    with closing(ReplayStore(targets.settings_for(state_dir).clickhouse)) as store:
        letter = store.letters_by_id([wanted]).get(wanted)
    if letter is None:
        raise UsageError(f"there is no dead letter {wanted}")
    found = described(letter, reveal)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, value in found.items():
        text = json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict) else value
        typer.echo(f"{name + ':':<17} {'' if text is None else text}")


def described(letter: Letter, reveal: bool) -> dict[str, Any]:
    """A letter for people and programs."""
    record = letter.record
    found: dict[str, Any] = {
        "id": letter.letter_id, "occurred_at": rfc3339(letter.occurred_at), "stage": letter.stage, "reason": letter.reason,
        "error": letter.error_class, "detail": letter.detail, "attempts": letter.attempts, "tenant": letter.tenant,
        "notification_id": letter.notification_id, "message_id": letter.message_id, "topic": record.topic,
        "partition": record.partition, "offset": record.offset,
        "key": None if record.key is None else record.key.decode("utf-8", "backslashreplace"),
        "redrive": refusal(letter) or "possible",
    }  # fmt: skip
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


@dlq_app.command("redrive")
def redrive(
    where: Where = None, stage: Stage = None, reason: Reason = None, tenant: Tenant = None, since: Since = KEPT,
    until: To = "now", dry_run: DryRun = False, rate: Rate = DEFAULT_RATE, yes: Yes = False, resume: Resume = None,
    state_dir: StateDir = DEFAULT_STATE_DIR, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Publish dead letters again where they were given up: shows what it will do, asks, and can be resumed."""
    settings = targets.settings_for(state_dir)
    with closing(ReplayStore(settings.clickhouse)) as store:
        if resume is not None:
            report(go_on(settings, store, store.find(resume), rate, as_json), None, as_json)
            return
        now = system_clock()
        letters = _selected(store, where, stage, reason, tenant, since, until)
        with screen.progress("reading", as_json):
            plan = choose_letters(store, letters, now)
        note = Replay(
            ids.notification_id(now, "replay"), "redrive", "notify.deadletters.v1", _filter_words(where, stage, reason),
            tenant or "", targets.who(), len(plan.items), now, parse_time(since, now), parse_time(until, now),
            counts=json.dumps(plan.summary()),
        )  # fmt: skip
        offer(settings, store, plan, note, rate, dry_run=dry_run, yes=yes, as_json=as_json, kind="dead letters")
