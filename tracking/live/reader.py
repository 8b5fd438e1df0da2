"""The thread that reads the status topic for who watches: without a group, from about where the sink is, into the ring.

Every record goes into the ring before it is looked at: who registers for a notification and then asks the ring misses none.
May import runtime.kafka and sinks. Never: a watcher, an event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence

from runtime.clock import system_monotonic
from runtime.errors import TopicsError, UnavailableError
from runtime.kafka.admin import Admin
from runtime.kafka.client import Partition
from runtime.kafka.consumer import STAY_MS, Consumer
from runtime.logs import get_logger
from runtime.records import ConsumerRecord
from runtime.settings import KafkaSettings
from schemas.codec import DecodeError, codec
from schemas.topics import STATUS
from sinks.role import GROUP
from tracking.live.facts import Fact, fact_of
from tracking.live.places import Place, write_place
from tracking.live.ring import Entry, Ring

log = get_logger("live")
RING_BYTES = 64 << 20
BATCH = 2_000
MAX_BEHIND = 100_000
"""Records that the sink has yet to store and that are read at the start, so that the first watchers have all."""
MAX_READ_BACK = 200_000
MAX_READ_BACK_S = 900
MAX_READ_BACK_BYTES = 128 << 20
"""Of the records that are wanted."""
READ_BACK_TIMEOUT_S = 20.0
_TIMEOUT_S = 5.0
_head = codec("DeliveryStatus").head_decoder(4)
"""Up to the tenant."""

Deliver = Callable[[list[Fact], str], None]
"""Facts somebody watches, in their order, and the place after the batch they came in; called from the thread."""


class Reader:
    """Reads until it is closed, whatever fails; one per process."""

    def __init__(
        self,
        settings: KafkaSettings,
        watched: Container[bytes],
        tenants: Container[str],
        deliver: Deliver,
        *,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        self._settings, self._watched, self._tenants, self._deliver = settings, watched, tenants, deliver
        self._ring_bytes = ring_bytes
        self.ring: Ring | None = None
        self._next: list[int] = []
        self._ready_at: Place | None = None
        self.ready = threading.Event()
        """Set once it has read what was there at its start."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop. Blocks for as long as a poll takes."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT_S)

    def positions(self) -> Place:
        """The next offset of each partition."""
        return tuple(self._next)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._read()
            except (UnavailableError, TopicsError) as exc:
                log.warning("live status cannot read", error=str(exc))
            except Exception:
                log.exception("live status cannot read")
            self._closed.wait(1)

    def _read(self) -> None:
        """Read on from where it was; a topic with other partitions than before is a new one."""
        consumer = Consumer(self._settings, client_id="live", group=None, fetch_wait_ms=STAY_MS)
        try:
            partitions = consumer.partitions_for_topic(STATUS)
            if self.ring is None or len(self._next) != len(partitions):
                self._begin(consumer, partitions)
            consumer.assign(dict(zip(partitions, self._next, strict=True)))
            while not self._closed.is_set():
                records = consumer.consume(BATCH, 0.5)
                self._take(records)
                for index, partition in enumerate(partitions):
                    # Past offsets that hold no record, too.
                    self._next[index] = max(self._next[index], consumer.position(partition) or 0)
                if not self.ready.is_set() and all(map(int.__ge__, self._next, self._ready_at or ())):
                    self.ready.set()
        finally:
            consumer.close()

    def _begin(self, consumer: Consumer, partitions: Sequence[Partition]) -> None:
        bounds = consumer.watermark_offsets(partitions)
        stored, _ = Admin(self._settings, timeout_s=_TIMEOUT_S).group_offsets(GROUP, [STATUS])
        behind = sum(max(0, bounds[p][1] - stored.get(p, 0)) for p in partitions)
        starts = [
            max(bounds[p][0], min(stored.get(p, 0), bounds[p][1])) if behind <= MAX_BEHIND else bounds[p][1]
            for p in partitions
        ]
        self._ready_at = tuple(bounds[p][1] for p in partitions)
        self._next = starts
        self.ring = Ring(starts, self._ring_bytes)

    def _take(self, records: Sequence[ConsumerRecord]) -> None:
        assert self.ring is not None
        entries = [Entry(r.partition, r.offset, r.timestamp, r.key or b"", r.value) for r in records]
        self.ring.add(entries)
        facts = []
        for entry in entries:
            self._next[entry.partition] = entry.offset + 1
            if entry.key in self._watched or self._is_of_a_watched_tenant(entry):
                fact = fact_of(entry, write_place(self._next))
                if fact is not None:
                    facts.append(fact)
        if entries:
            self._deliver(facts, write_place(self._next))

    def _is_of_a_watched_tenant(self, entry: Entry) -> bool:
        return bool(self._tenants) and _tenant_of(entry.value) in self._tenants


def _tenant_of(value: bytes | None) -> str | None:
    """None for what is not a status."""
    try:
        tenant: str = _head(value)["tenant"]
    except DecodeError:
        return None
    return tenant


def end_offsets(settings: KafkaSettings, partitions: int) -> Place:
    """Where the topic ends now. Blocks. Raises UnavailableError."""
    consumer = Consumer(settings, client_id="live-ends", group=None, detect_eof=True)
    try:
        bounds = consumer.watermark_offsets([(STATUS, partition) for partition in range(partitions)])
        return tuple(bounds[STATUS, partition][1] for partition in range(partitions))
    finally:
        consumer.close()


def read_back(settings: KafkaSettings, tenant: str, place: Place, until: Place, now_ms: int) -> list[Entry] | None:
    """A tenant's records from one place to another; None when that is more than is read, or longer ago, or gone.

    Blocks, for seconds at most. Raises UnavailableError.
    """
    ranges = {p: (start, end) for p, (start, end) in enumerate(zip(place, until, strict=True)) if start < end}
    if sum(end - start for start, end in ranges.values()) > MAX_READ_BACK:
        return None
    consumer = Consumer(settings, client_id="live-resume", group=None, detect_eof=True)
    try:
        bounds = consumer.watermark_offsets([(STATUS, p) for p in ranges])
        if any(bounds[STATUS, p][0] > start for p, (start, _) in ranges.items()):
            return None
        consumer.assign({(STATUS, p): start for p, (start, _) in ranges.items()})
        left = dict(ranges)
        entries = list[Entry]()
        size = 0
        deadline = system_monotonic() + READ_BACK_TIMEOUT_S
        while left:
            if system_monotonic() > deadline:
                raise UnavailableError("Kafka does not give what is asked for in time")
            for r in consumer.consume(BATCH, 0.5):
                if now_ms - r.timestamp > MAX_READ_BACK_S * 1_000:
                    return None
                if r.offset < ranges[r.partition][1] and _tenant_of(r.value) == tenant:
                    entries.append(Entry(r.partition, r.offset, r.timestamp, r.key or b"", r.value))
                    size += len(r.value or b"")
            if size > MAX_READ_BACK_BYTES:
                return None
            for p, (_, end) in list(left.items()):
                if (consumer.position((STATUS, p)) or 0) >= end:
                    del left[p]
    finally:
        consumer.close()
    return entries
