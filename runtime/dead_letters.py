"""Dead letters: a record that cannot be processed is kept whole, with the reason, before its offset is committed.

A few are an accident, a flood is a mistake (the wrong producer, the wrong schema): the brake then holds the stage, which
gives up nothing and commits nothing until somebody has looked.
May import schemas. Never: a decision to give up (the stage takes it), a Kafka client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import cast

from runtime import ids
from runtime.clock import Monotonic, system_monotonic
from runtime.errors import DeadLetterFlood, TooLargeError
from runtime.logs import redact_text
from runtime.metrics import DEAD_LETTER_BRAKE
from runtime.metrics import DEAD_LETTERS as COUNTER
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import DeadLetterSettings
from schemas.codec import codec
from schemas.events import DeadLetter
from schemas.topics import DEAD_LETTERS, MAX_DEAD_LETTER_BYTES

UNDECODABLE = "undecodable"
INTERNAL_ERROR = "internal_error"
CUT = "cut to fit"
"""How the detail of a letter begins that does not hold its record whole."""
_MAX_DETAIL = 500
_ROOM = MAX_DEAD_LETTER_BYTES - 64 * 1024
"""For what came from elsewhere; the rest is for what we say about it, and Kafka's own framing."""
_MAX_KEY = 64 * 1024
_MAX_HEADERS = 256 * 1024
_MIN_VALUE = 16 * 1024


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
    """The record for notify.deadletters.v1. Publish it and wait for the acknowledgement before going on.

    A letter always fits: of a record that is larger than one, what is beyond is left out and the detail says so.
    """
    COUNTER.labels(stage, reason).inc()
    dead_letter: DeadLetter = {
        "dead_letter_id": ids.dead_letter_id(
            record.topic, record.partition, record.offset, record.timestamp, record.key, record.value
        ),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
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
    return _encoded(dead_letter, _ROOM)


def smaller(dead_letter: ProducerRecord) -> ProducerRecord | None:
    """The same letter with a part of its record only, for a broker that takes less than we allow; None when it cannot be."""
    found = cast(DeadLetter, codec("DeadLetter").decode(dead_letter.value))
    room = len(dead_letter.value or b"") // 4
    return _encoded(found, room) if room >= _MIN_VALUE else None


def publish_dead_letters(
    publish: Callable[[Sequence[ProducerRecord]], None], dead_letters: Sequence[ProducerRecord]
) -> None:
    """Publish letters and wait; those that Kafka refuses for their size go again with less of their record in them.

    Raises what `publish` raises; TooLargeError for a letter of which nothing can be left out: rather stop than lose it.
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
    """Whether a letter with this detail holds only a part of its record."""
    return (detail or "").startswith(CUT)


def _encoded(dead_letter: DeadLetter, room: int) -> ProducerRecord:
    """The letter; `room` is for key (which is the letter's own as well), headers and value, in bytes."""
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
    return ProducerRecord(DEAD_LETTERS, dead_letter["key"], codec("DeadLetter").encode(dead_letter))


def _words(error: BaseException) -> str:
    # Half a character, which a message may quote, is no text that can be written.
    text = str(error)[: 10 * _MAX_DETAIL].encode(errors="replace").decode()
    return redact_text(text)[:_MAX_DETAIL]


def _id(text: str | None) -> str | None:
    """What names the subject; nothing of ours is this long."""
    return None if text is None else text[:1_000]


class DeadLetterBrake:
    """Counts what a stage looked at and what it could not use; holds it when that is too much. Pure but for its clock.

    Ask with every batch, before its letters are published. Once it holds it holds until the process ends: a window that
    empties while the stage stands still says nothing about the records that wait. A new process starts counting anew,
    so a restart lets less than `min_count` records through. Messages whose retries are exhausted are not its business.
    """

    def __init__(self, settings: DeadLetterSettings, stage: str, *, monotonic: Monotonic = system_monotonic) -> None:
        self._settings, self._stage, self._monotonic = settings, stage, monotonic
        self._window: deque[list[float]] = deque()  # [second, looked at, unusable]
        self._looked_at = self._unusable = 0
        self._flood: DeadLetterFlood | None = None
        DEAD_LETTER_BRAKE.labels(stage).set(0)

    def check(self, looked_at: int, unusable: int) -> None:
        """Count a batch, `unusable` of it undecodable or our own error. Raises DeadLetterFlood: do not give it up."""
        if self._flood is None:
            self._count(looked_at, unusable)
            many = self._looked_at >= self._settings.min_count
            if unusable and many and self._unusable > self._settings.max_ratio * self._looked_at:
                self._flood = DeadLetterFlood(
                    f"{self._unusable} of the last {self._looked_at} records cannot be used: a wrong producer or schema? "
                    "Held with nothing more given up or committed; mend it and start again, or give them up with "
                    "HELIOGRAPH_DEAD_LETTERS__MAX_RATIO=1"
                )
                DEAD_LETTER_BRAKE.labels(self._stage).set(1)
        if self._flood is not None:
            raise self._flood

    def not_ready(self) -> str | None:
        """For readiness: why the stage is held, None while it is not."""
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
