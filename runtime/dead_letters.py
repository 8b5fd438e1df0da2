"""Dead letters: a record that cannot be processed is kept whole, with the reason, before its offset is committed.

A few are an accident, a flood is a mistake (the wrong producer, the wrong schema): the brake then holds the stage, which
gives up nothing and commits nothing until somebody has looked.
May import schemas. What never enters here: a decision to give up (the stage takes it), a Kafka client.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from runtime import ids
from runtime.errors import DeadLetterFlood
from runtime.logs import redact_text
from runtime.metrics import DEAD_LETTER_BRAKE
from runtime.metrics import DEAD_LETTERS as COUNTER
from runtime.records import InRecord, OutRecord
from runtime.settings import DeadLetterSettings
from schemas.codec import codec
from schemas.events import DeadLetter
from schemas.topics import DEAD_LETTERS

UNDECODABLE = "undecodable"
INTERNAL_ERROR = "internal_error"


def dead_letter(
    record: InRecord, *, stage: str, reason: str, error: BaseException, now: int, attempts: int = 1,
    tenant: str | None = None, notification_id: str | None = None, message_id: str | None = None,
) -> OutRecord:  # fmt: skip
    """The record for notify.deadletters.v1. Publish it and wait for the acknowledgement before going on."""
    COUNTER.labels(stage, reason).inc()
    letter: DeadLetter = {
        "dead_letter_id": ids.dead_letter_id(stage, record.topic, record.partition, record.offset),
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "key": record.key,
        "value": record.value,
        "headers": [{"name": name, "value": value or b""} for name, value in record.headers],
        "stage": stage,
        "reason": reason,
        "error_class": type(error).__name__,
        "detail": redact_text(str(error))[:500],
        "attempts": attempts,
        "tenant": tenant,
        "notification_id": notification_id,
        "message_id": message_id,
        "occurred_at": now,
    }
    return OutRecord(DEAD_LETTERS, record.key, codec("DeadLetter").encode(letter))


class Brake:
    """Counts what a stage looked at and what it could not use; holds it when that is too much. Pure but for its clock.

    Ask with every batch, before its letters are published. Once it holds it holds until the process ends: a window that
    empties while the stage stands still says nothing about the records that wait. A new process starts counting anew,
    so a restart lets less than `min_count` records through. Messages whose retries are exhausted are not its business.
    """

    def __init__(
        self, settings: DeadLetterSettings, stage: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._stage, self._clock = settings, stage, clock
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
        second = float(int(self._clock()))
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
