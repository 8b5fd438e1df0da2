"""The ledger: which attempts of which message were made, for as long as its topic keeps them (`ledger_ms`, 7 days).

A dispatch record whose attempt was made, or whose message is settled, is a duplicate: router redeliveries, repeated
requests, replays and second firings of a timer end here. A partition's owner writes each entry to the ledger topic before the
commit that releases the message; a process that takes over reads the topic from the position of its own store.
May import runtime. Never: a decision to send.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

from runtime import ids
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import UNDECODABLE, dead_letter_record
from runtime.errors import UnavailableError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import BEGINNING
from runtime.logs import get_logger
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.stores import Store
from schemas.codec import DecodeError, codec
from schemas.events import LANES, LedgerEntry, states
from schemas.topics import ledger_topic
from senders.outcomes import LEDGER_DOUBT

log = get_logger("ledger")

READ_TIMEOUT_S = 280.0
"""Below the sender's max.poll.interval (senders/consumers.py): a takeover that takes longer starts over. A million entries take 3 s."""
_VALUE = struct.Struct(">II")
"""next_attempt × 4 + how it ended, seconds since 1970."""
_FAILED = 1
_FINAL = 2
_FAILED_IN_DOUBT = 3
_LAST_WINS = (0, 1, 3, 2)
"""Of two outcomes of one attempt the higher of these is kept: a recipient who may have the message still may."""


class Ledger:
    """message_id → next attempt, and whether it is settled. Every call on one thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # What was recorded since the last flush: a store need not show it before.
        self._fresh: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._store)

    def record(self, message_id: str, next_attempt: int, state: str | None, at: int, in_doubt: bool = False) -> None:
        """Apply an entry of the time `at` (ms), `state` None while unsettled; an older one never overwrites a newer one.

        Raises ValueError or struct.error for numbers that cannot be an attempt or a time.
        """
        key = ids.bytes_of(message_id)
        value = next_attempt * 4 + _ending(state, in_doubt)
        if _order(value) >= _order(self._known(key)):
            self._store.put(key, _VALUE.pack(value, at // 1000))
            self._fresh[key] = value

    def _known(self, key: bytes) -> int:
        fresh = self._fresh.get(key)
        if fresh is not None:
            return fresh
        kept = self._store.get(key)
        return int(_VALUE.unpack(kept)[0]) if kept is not None else 0

    def duplicate(self, message_id: str, attempt: int) -> str | None:
        """Why a dispatch record is a duplicate (`settled`, `attempt`), None when it is not."""
        known = self._known(ids.bytes_of(message_id))
        if known & (_FAILED | _FINAL):
            return "settled"
        return "attempt" if attempt < known >> 2 else None

    def resumes_at(self, message_id: str) -> int | None:
        """The attempt with which a replay may continue: the message failed, and no attempt can have been delivered."""
        known = self._known(ids.bytes_of(message_id))
        return known >> 2 if known & _FAILED else None

    def in_doubt(self, message_id: str) -> bool:
        """Whether the message failed, but an earlier attempt may have reached the recipient."""
        return self._known(ids.bytes_of(message_id)) & 3 == _FAILED_IN_DOUBT

    def flush(self, positions: Mapping[int, int], now: int) -> None:
        """Make what was recorded visible and, with the positions of the topic, as durable as the store is."""
        self._store.commit(positions, now)
        self._fresh.clear()

    def positions(self) -> dict[int, int]:
        """The store's position, by `partition_index`."""
        return dict(self._store.positions()[0])

    def forget_before(self, moment: int) -> int:
        """Drop what is older than the moment (ms); the number of entries dropped. RocksDB does it by itself."""
        old = [key for key, value in self._store.items() if _VALUE.unpack(value)[1] < moment // 1000]
        for key in old:
            self._store.delete(key)
        return len(old)

    def close(self) -> None:
        self._store.close()


def _ending(state: str | None, in_doubt: bool) -> int:
    if state is None:
        return 0
    if state not in states().retriable:
        return _FINAL
    return _FAILED_IN_DOUBT if in_doubt else _FAILED


def _order(value: int) -> int:
    return value - (value & 3) + _LAST_WINS[value & 3]


def partition_index(partition: Partition) -> int:
    """A number for a ledger partition within its channel."""
    lane = partition[0].rsplit(".", 2)[1]
    return LANES.index(lane) * 100_000 + partition[1]


class LedgerConsumer(Protocol):
    """The part of runtime.kafka.Consumer that is used; it notices the ends of partitions."""

    eof_partitions: set[Partition]

    def watermark_offsets(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]: ...
    def assign(self, offsets: Mapping[Partition, int]) -> None: ...
    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]: ...
    def close(self) -> None: ...


class LedgerReader:
    """Reads ledger partitions of a channel into the ledger; every call on the ledger's thread.

    `publish_dead_letters` publishes a dead letter for each record that is not a ledger entry.
    """

    def __init__(
        self,
        consumer: LedgerConsumer,
        channel: str,
        ledger: Ledger,
        publish_dead_letters: Callable[[Sequence[ProducerRecord]], None],
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._consumer = consumer
        self._channel = channel
        self._ledger = ledger
        self._publish_dead_letters = publish_dead_letters
        self._clock = clock
        self._monotonic = monotonic
        self._positions = ledger.positions()

    def partition(self, dispatch: Partition, lane: str) -> Partition:
        """The ledger partition of a dispatch partition."""
        return ledger_topic(self._channel, lane), dispatch[1]

    def read(self, partitions: Sequence[Partition]) -> int:
        """Take in every partition to the end it has now; the number of entries read. Raises UnavailableError."""
        started = self._monotonic()
        starts = {}
        ends = {}
        for partition, (first, end) in self._consumer.watermark_offsets(partitions).items():
            kept = self._positions.get(partition_index(partition), -1)
            # Beyond the end is another topic of the same name; below the first the rest is past its seven days.
            starts[partition] = kept if first <= kept <= end else BEGINNING
            ends[partition_index(partition)] = end
        self._consumer.eof_partitions.clear()
        self._consumer.assign(starts)
        taken = 0
        while not self._consumer.eof_partitions.issuperset(partitions):
            if self._monotonic() > started + READ_TIMEOUT_S:
                raise UnavailableError("the ledger could not be read to its end in time; is Kafka reachable?")
            taken += self._take()
            self.flush()
        self._consumer.assign({})
        # Only now: a process killed while it reads must not find a position before which entries are missing.
        self._positions.update(ends)
        self.flush()
        log.info(
            "ledger read", partitions=len(partitions), entries=taken, seconds=round(self._monotonic() - started, 3)
        )
        return taken

    def _take(self) -> int:
        dead_letters = []
        records = self._consumer.consume(5_000, 0.2)
        for record in records:
            if record.value is None:
                continue
            try:
                entry = cast(LedgerEntry, codec("LedgerEntry").decode(record.value))
                self._ledger.record(
                    entry["message_id"],
                    entry["next_attempt"],
                    entry["state"],
                    entry["recorded_at"],
                    in_doubt=LEDGER_DOUBT in record.headers,
                )
            except (DecodeError, ValueError, struct.error) as exc:
                dead_letters.append(
                    dead_letter_record(record, stage="ledger", reason=UNDECODABLE, error=exc, now=self._clock())
                )
        self._publish_dead_letters(dead_letters)
        return len(records)

    def advance(self, partitions: Sequence[Partition]) -> None:
        """Move the kept positions to the ends of partitions whose every entry their owner, this process, has recorded."""
        for partition, (_, end) in self._consumer.watermark_offsets(partitions).items():
            self._positions[partition_index(partition)] = end
        self.flush()

    def flush(self) -> None:
        """Flush the ledger with the positions known to be complete."""
        self._ledger.flush(self._positions, self._clock())

    def close(self) -> None:
        self._consumer.close()
