"""The ledger of one dispatch partition: which attempts of which message were made.

Read from its topic to the end at takeover, then kept up by its owner. A dispatch record whose attempt was made, or whose
message is settled, is a duplicate: router redeliveries, repeated requests, replays and second firings of a timer end here.
May import runtime. What never enters here: a decision to send.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import cast
from uuid import UUID

from runtime.clock import Clock
from runtime.dead_letters import UNDECODABLE, dead_letter
from runtime.errors import UnavailableError
from runtime.kafka import BEGINNING, Consumer, Partition
from runtime.records import OutRecord
from runtime.settings import KafkaSettings
from schemas.codec import DecodeError, codec
from schemas.events import LedgerEntry

READ_TIMEOUT_S = 50.0
"""Below max.poll.interval: a takeover that takes longer starts over."""


class Ledger:
    """message_id → next attempt, settled or not; 17 bytes of key and one int each."""

    def __init__(self) -> None:
        self._next: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._next)

    def record(self, message_id: str, next_attempt: int, settled: bool) -> None:
        """Take in an entry; an older one never undoes a newer one."""
        key = UUID(message_id).bytes
        self._next[key] = max(self._next.get(key, 0), next_attempt * 2 + settled)

    def duplicate(self, message_id: str, attempt: int) -> str | None:
        """Why a dispatch record is a duplicate (`settled`, `attempt`), None when it is none."""
        known = self._next.get(UUID(message_id).bytes)
        if known is None:
            return None
        if known & 1:
            return "settled"
        return "attempt" if attempt < known >> 1 else None


class LedgerReader:
    """Reads whole ledger partitions; one consumer is kept, because the first read of a fresh one takes a second."""

    def __init__(
        self, settings: KafkaSettings, channel: str, report: Callable[[Sequence[OutRecord]], None], clock: Clock
    ):
        self._consumer = Consumer(
            settings, client_id=f"ledger-{channel}", group=None, queued_kbytes=65_536, notice_end=True
        )
        self._report, self._clock = report, clock

    def read(self, partitions: Sequence[Partition]) -> dict[Partition, Ledger]:
        """Every partition to the end it has now. Raises UnavailableError."""
        ledgers = {partition: Ledger() for partition in partitions}
        self._consumer.reached_end.clear()
        self._consumer.assign(dict.fromkeys(partitions, BEGINNING))
        deadline = time.monotonic() + READ_TIMEOUT_S
        while not self._consumer.reached_end.issuperset(partitions):
            if time.monotonic() > deadline:
                raise UnavailableError("the ledger could not be read to its end in time; is Kafka reachable?")
            letters = []
            for record in self._consumer.consume(5_000, 0.2):
                if record.value is None:
                    continue
                try:
                    entry = cast(LedgerEntry, codec("LedgerEntry").decode(record.value))
                    ledger = ledgers[record.topic, record.partition]
                    ledger.record(entry["message_id"], entry["next_attempt"], entry["state"] is not None)
                except (DecodeError, ValueError) as exc:
                    letters.append(
                        dead_letter(record, stage="ledger", reason=UNDECODABLE, error=exc, now=self._clock())
                    )
            self._report(letters)
        self._consumer.assign({})
        return ledgers

    def close(self) -> None:
        self._consumer.close()
