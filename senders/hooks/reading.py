"""What the hooks stage reads beside its group: facts again, positions at a takeover, where a time begins. One thread.

May import runtime.kafka. Never: an endpoint's state, a commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

from runtime.clock import Monotonic, system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import BEGINNING, Consumer
from runtime.logs import get_logger
from runtime.records import ConsumerRecord
from runtime.settings import KafkaSettings
from schemas.codec import DecodeError, codec
from schemas.events import HookPosition
from schemas.topics import HOOK_POSITIONS, STATUS
from senders.hooks.facts import Chunk, chunk_of

log = get_logger("hooks")
MAX_RECORDS = 200
"""Of facts that are read again: so many are decoded in one go, while those who keep up wait for the interpreter."""
TIMEOUT_S = 10.0


class Reread(NamedTuple):
    """Facts from an offset on; `low` is where the topic begins, if that is beyond it."""

    chunk: Chunk
    low: int | None


class Positions(NamedTuple):
    """What a partition of notify.hookpositions.v1 holds: positions by the endpoint's id, and what is none."""

    found: dict[str, HookPosition]
    unreadable: list[tuple[ConsumerRecord, DecodeError]]


class Reader:
    """A consumer without a group. Every call on one thread; each raises UnavailableError where Kafka does not answer."""

    def __init__(self, settings: KafkaSettings, monotonic: Monotonic = system_monotonic) -> None:
        self._consumer = Consumer(settings, client_id="hooks-again", group=None, detect_eof=True)
        self._monotonic = monotonic

    def facts(self, partition: int, offset: int, tenants: frozenset[str]) -> Reread:
        """The next MAX_RECORDS records at most."""
        where = (STATUS, partition)
        records: list[ConsumerRecord] = []
        end = offset
        for some in self._records(where, offset):
            records = some
            end = some[-1].offset + 1
            break
        else:
            end = max(offset, self._consumer.position(where) or offset)
        low = None
        if not records or records[0].offset > offset:  # or there was no record in between: a transaction's marker
            first = self._consumer.watermark_offsets([where])[where][0]
            low = first if first > offset else None
        self._consumer.assign({})
        start = offset if low is None else low
        return Reread(chunk_of(records, start, max(start, end), tenants), low)

    def positions(self, partition: int) -> Positions:
        """Of every endpoint that has one in a partition."""
        found: dict[str, HookPosition] = {}
        unreadable: list[tuple[ConsumerRecord, DecodeError]] = []
        for records in self._records((HOOK_POSITIONS, partition), BEGINNING, to_the_end=True):
            for record in records:
                key = (record.key or b"").decode("ascii", "replace").partition(":")[0]
                if record.value is None:
                    found.pop(key, None)
                    continue
                try:
                    found[key] = cast(HookPosition, codec("HookPosition").decode(record.value))
                except DecodeError as exc:
                    # Without a position it starts where it was made: repeats, and nothing lost.
                    log.error("a position is unreadable", partition=partition, offset=record.offset, error=str(exc))
                    found.pop(key, None)
                    unreadable.append((record, exc))
        self._consumer.assign({})
        return Positions(found, unreadable)

    def starts(self, partitions: set[int], since: int) -> dict[int, int]:
        """Offsets before which nothing was published since a time (ms)."""
        # The ends first: a fact that comes between the two calls is behind the end that the second one gives.
        ends = self._consumer.watermark_offsets([(STATUS, partition) for partition in partitions])
        found = self._consumer.offsets_for_times({(STATUS, partition): since for partition in partitions})
        return {partition: min(offset, ends[topic, partition][1]) for (topic, partition), offset in found.items()}

    def _records(self, where: Partition, offset: int, *, to_the_end: bool = False) -> Iterator[list[ConsumerRecord]]:
        self._consumer.eof_partitions.clear()
        self._consumer.assign({where: offset})
        deadline = self._monotonic() + TIMEOUT_S
        while True:
            records = self._consumer.consume(MAX_RECORDS, 0.2)
            # Below the offset only where the topic was made anew, and then it begins there.
            if records:
                deadline = self._monotonic() + TIMEOUT_S
                yield records
            if where in self._consumer.eof_partitions and (not records or not to_the_end):
                return
            if self._monotonic() > deadline:
                raise UnavailableError(
                    f"no record from {where[0]} for {TIMEOUT_S:.0f} s, but more are expected; check Kafka: `heliograph doctor`"
                )

    def close(self) -> None:
        """Leave."""
        self._consumer.close()
