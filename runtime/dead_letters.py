"""Dead letters: a record that cannot be processed is kept whole, with the reason, before its offset is committed.

A few are an accident; many are a mistake (a wrong producer or schema). Then the brake halts the stage, which dead-letters and
commits no more records until an operator has fixed the cause.
May import schemas. Never: a decision to dead-letter (the stage takes it), a Kafka client.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from runtime import ids
from runtime.clock import Monotonic, system_monotonic
from runtime.errors import DeadLetterFlood, TooLargeError
from runtime.logs import redact_text
from runtime.metrics import DEAD_LETTER_BRAKE
from runtime.metrics import DEAD_LETTERS as COUNTER
from runtime.records import ConsumerRecord, Headers, ProducerRecord
from runtime.settings import DeadLetterSettings
from schemas.codec import codec
from schemas.events import DeadLetter
from schemas.topics import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES

UNDECODABLE = "undecodable"
INTERNAL_ERROR = "internal_error"
CUT = "cut to fit"
"""Begins the detail of a dead letter that holds only a part of its record."""
_MAX_DETAIL = 500
REDRIVEN = "dead-letter"
"""Header of a record that a re-drive published, `ID:OFFSET` of its dead letter: given up again, it is that letter again.
Whoever may write to the topic may write it too, but an id cannot be guessed without the bytes of the record."""
_ROOM = MAX_DEAD_LETTER_BYTES - 64 * 1024
"""For what came from elsewhere; the rest is for what we say about it, and Kafka's own framing."""
_REDRIVEN_VALUE = re.compile(rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):(\d{1,18})")
_MAX_KEY = 64 * 1024
_MAX_HEADERS = 256 * 1024
_MIN_VALUE = 16 * 1024


def redriven(dead_letter_id: str, offset: int) -> tuple[str, bytes]:
    """The header that a re-drive gives the copy of a letter's record; `offset` is the letter's."""
    return REDRIVEN, f"{dead_letter_id}:{offset}".encode()


def is_redriven(headers: Headers) -> bool:
    """Whether a re-drive published the record, or it is the dead letter of such a record."""
    return _letter_of(headers) is not None


def _letter_of(headers: Headers) -> tuple[str, int] | None:
    """The letter (id, offset) whose copy a record is."""
    for name, value in headers:
        if name == REDRIVEN and value is not None and (found := _REDRIVEN_VALUE.fullmatch(value)):
            return found[1].decode(), int(found[2])
    return None


def dead_letter_record(
    record: ConsumerRecord,
    *,
    stage: str,
    reason: str,
    error: BaseException,
    now: int,
    attempts: int = 1,
    tenant: str | None = None,
    notification_id: str | None = None,
    message_id: str | None = None,
) -> ProducerRecord:
    """The record for notify.deadletters.v1. Publish it and wait for the acknowledgement before committing the original.

    It always fits: of a record that is too large, the rest is left out and the detail says so. What a re-drive published
    keeps its letter's id and place, so that the new letter replaces the old one.
    """
    COUNTER.labels(stage, reason).inc()
    before = _letter_of(record.headers)
    dead_letter_id, offset = before or (
        ids.dead_letter_id(record.topic, record.partition, record.offset, record.timestamp, record.key, record.value),
        record.offset,
    )
    dead_letter: DeadLetter = {
        "dead_letter_id": dead_letter_id,
        "topic": record.topic,
        "partition": record.partition,
        "offset": offset,
        "key": record.key,
        "value": record.value,
        "headers": [{"name": name, "value": value or b""} for name, value in record.headers],
        "stage": stage,
        "reason": reason,
        "error_class": type(error).__name__,
        "detail": _words(error),
        "attempts": attempts,
        "tenant": _id(tenant),
        "notification_id": _id(notification_id),
        "message_id": _id(message_id),
        "occurred_at": now,
    }
    return _encoded(dead_letter, _ROOM, [redriven(*before)] if before else [])


def smaller(dead_letter: ProducerRecord) -> ProducerRecord | None:
    """The same dead letter with less of its record, for a broker with a lower limit; None if it cannot be smaller."""
    found = cast(DeadLetter, codec("DeadLetter").decode(dead_letter.value))
    room = len(dead_letter.value or b"") // 4
    return _encoded(found, room, dead_letter.headers) if room >= _MIN_VALUE else None


def publish_dead_letters(
    publish: Callable[[Sequence[ProducerRecord]], None], dead_letters: Sequence[ProducerRecord]
) -> None:
    """Publish dead letters and wait; those that Kafka refuses for their size are published with less of their record.

    Raises what `publish` raises; TooLargeError for one that cannot be cut further: the stage stops rather than lose it.
    """
    while dead_letters:
        try:
            publish(dead_letters)
            return
        except TooLargeError as exc:
            cut = [smaller(refused) for refused in exc.records]
            if None in cut:
                raise
            dead_letters = [dead_letter for dead_letter in cut if dead_letter is not None]


def is_cut(detail: str | None) -> bool:
    """Whether a dead letter with this detail holds only a part of its record."""
    return (detail or "").startswith(CUT)


def _encoded(dead_letter: DeadLetter, room: int, of_letter: Headers) -> ProducerRecord:
    """The dead letter; `room` is for its key (which becomes the Kafka key too), headers and value, in bytes.

    `of_letter`: the letter's own headers, none but REDRIVEN.
    """
    key, value, headers = dead_letter["key"] or b"", dead_letter["value"] or b"", dead_letter["headers"]
    around = sum(len(header["name"].encode()) + len(header["value"]) + 8 for header in headers)
    if 2 * len(key) + around + len(value) > room:
        key = key[: min(_MAX_KEY, room // 8)]
        headers = headers if around <= min(_MAX_HEADERS, room // 4) else []
        kept = value[: room - 2 * len(key) - (around if headers else 0)]
        note = f"{CUT}: {len(kept):,} of {len(value):,} bytes of the value"
        note += (
            f", {len(key):,} of {len(dead_letter['key'] or b''):,} of the key"
            if len(key) < len(dead_letter["key"] or b"")
            else ""
        )
        note += ", no headers" if around and not headers else ""
        dead_letter = {
            **dead_letter,
            "key": key if dead_letter["key"] is not None else None,
            "value": kept if dead_letter["value"] is not None else None,
            "headers": headers,
            "detail": f"{note}; {dead_letter['detail']}"[:_MAX_DETAIL],
        }
    return ProducerRecord(DEAD_LETTERS, dead_letter["key"], codec("DeadLetter").encode(dead_letter), of_letter)


def _words(error: BaseException) -> str:
    # A message may quote a lone surrogate, which cannot be encoded.
    text = str(error)[: 10 * _MAX_DETAIL].encode(errors="replace").decode()
    return redact_text(text)[:_MAX_DETAIL]


def _id(text: str | None) -> str | None:
    """An id, cut: other publishers may write longer ones than Heliograph does."""
    return None if text is None else text[:1_000]


class DeadLetterBrake:
    """Counts what a stage read and what it could not use; halts the stage at too many. Pure but for its clock.

    Call it with every batch, before the batch's dead letters are published. Once halted it stays halted until the process
    ends: while the stage does not read, an emptying window says nothing about the records that wait. A new process counts
    from 0, so each restart lets fewer than `min_count` records through. Messages whose retries are exhausted do not count,
    nor does what an operator re-drove: a second try of old records says nothing about those that come in.
    """

    def __init__(self, settings: DeadLetterSettings, stage: str, *, monotonic: Monotonic = system_monotonic) -> None:
        self._settings, self._stage, self._monotonic = settings, stage, monotonic
        self._window: deque[list[float]] = deque()  # [second, looked at, unusable]
        self._looked_at = self._unusable = 0
        self._flood: DeadLetterFlood | None = None
        DEAD_LETTER_BRAKE.labels(stage).set(0)

    def check(self, looked_at: int, unusable: int) -> None:
        """Count a batch, `unusable` of it undecodable or our own error. Raises DeadLetterFlood: do not dead-letter the batch."""
        if self._flood is None:
            self._count(looked_at, unusable)
            many = self._looked_at >= self._settings.min_count
            if unusable and many and self._unusable > self._settings.max_ratio * self._looked_at:
                self._flood = DeadLetterFlood(
                    f"{self._unusable} of the last {self._looked_at} records are unusable, so the stage halted; it dead-letters "
                    "and commits no more records. Fix the producer or schema and restart; or restart with "
                    "HELIOGRAPH_DEAD_LETTERS__MAX_RATIO=1 to dead-letter them"
                )
                DEAD_LETTER_BRAKE.labels(self._stage).set(1)
        if self._flood is not None:
            raise self._flood

    def not_ready(self) -> str | None:
        """For readiness: why the stage is halted, None while it is not."""
        return str(self._flood) if self._flood is not None else None

    def _count(self, looked_at: int, unusable: int) -> None:
        second = float(int(self._monotonic()))
        if self._window and self._window[-1][0] == second:
            self._window[-1][1] += looked_at
            self._window[-1][2] += unusable
        else:
            self._window.append([second, looked_at, unusable])
        self._looked_at += looked_at
        self._unusable += unusable
        while self._window[0][0] <= second - self._settings.window_s:
            _, old, old_unusable = self._window.popleft()
            self._looked_at -= int(old)
            self._unusable -= int(old_unusable)
