"""What keeps messages from going on (an account that does not work, a stage that halted), said on notify.conditions.v1.

    | the process sees                          | says                                     |
    |-------------------------------------------|------------------------------------------|
    | something is down, or down for other cause| down, at once                            |
    | it is still down                          | down again every REPEAT_S                |
    | it works again                            | up, once                                 |
    | it ends                                   | nothing: a down that is not repeated ends|

The key has the process: each has breakers of its own. May import runtime values and schemas. Never: what an account is.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from runtime.clock import Clock, system_clock
from runtime.errors import PublishError
from runtime.logs import get_logger
from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.events import Condition
from schemas.topics import CONDITIONS

log = get_logger("conditions")
LOOK_S = 1.0
REPEAT_S = 30.0
OVER_AFTER_S = 90.0
"""A down that was said longer ago is over, or nobody is left to say it; readers (SQL too) know this number."""
_MAX_DETAIL = 300


class Down(NamedTuple):
    """Something that is down; times in ms."""

    subject: str
    """account, router or sender."""
    name: str
    why: str
    since: int | None = None
    next_at: int | None = None
    channel: str | None = None


class Sender(Protocol):
    """The part of a producer that is used."""

    async def send(self, records: Sequence[ProducerRecord]) -> None: ...


class ConditionReporter:
    """Says what changes. `look` gives what is down now."""

    def __init__(
        self, producer: Sender, role: str, look: Callable[[], Iterable[Down]], clock: Clock = system_clock
    ) -> None:
        self._producer, self._look, self._clock = producer, look, clock
        self._process = f"{role}@{socket.gethostname()}:{os.getpid()}"
        self._said: dict[tuple[str, str], tuple[str, int]] = {}
        """What was said to be down: why, and when it was said."""

    def due(self) -> list[ProducerRecord]:
        """The records to publish now."""
        now = self._clock()
        down = {(found.subject, found.name): found for found in self._look()}
        records = []
        for key, found in down.items():
            why, said_at = self._said.get(key, ("", 0))
            if why != found.why or now - said_at >= REPEAT_S * 1000:
                self._said[key] = found.why, now
                records.append(self._record(found, "down", now))
        for key in [key for key in self._said if key not in down]:
            del self._said[key]
            records.append(self._record(Down(*key, ""), "up", now))
        return records

    def _record(self, found: Down, state: str, now: int) -> ProducerRecord:
        condition: Condition = {
            "subject": found.subject,
            "name": found.name,
            "channel": found.channel,
            "process": self._process,
            "state": state,
            "detail": found.why[:_MAX_DETAIL] or None,
            "since": found.since,
            "next_at": found.next_at,
            "stated_at": now,
        }
        key = f"{found.subject}:{found.name}:{self._process}".encode()
        return ProducerRecord(CONDITIONS, key, codec("Condition").encode(condition))

    async def run(self) -> None:
        """Say it until cancelled. What Kafka does not take now is said again."""
        while True:
            await asyncio.sleep(LOOK_S)
            if not (records := self.due()):
                continue
            try:
                await self._producer.send(records)
            except PublishError as exc:
                self._said.clear()
                log.warning("not said", error=str(exc))
