"""How far an endpoint has one partition, and the partition's last facts, which all endpoints read; pure.

    offsets    … 7   8   9  10  11  12  13  14  15
                 ✓   ✓   ✗   ✓   …   ✓   …   |            ✗ owed: refused, tried again by itself   … in flight
                                 ^ position   ^ read

The position is the lowest offset in flight, else the next to read. Written down with what is owed it is a true statement whoever
makes it, and however late: everything below is done. So the last one written counts, and an old one costs repeats, never a fact.
May import the standard library. Never: Kafka, a request.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from schemas.events import OwedFact
from senders.hooks.facts import Chunk, Fact, Wanted

MAX_RECENT = 2_048
"""Facts of a partition that are held for endpoints that keep up."""
UNPLACED = -1
_NOTHING: Sequence[Fact] = ()


def position_key(endpoint_id: str, partition: int) -> str:
    """The key of a position's record."""
    return f"{endpoint_id}:{partition}"


class RecentFacts:
    """The last chunks of a partition, without gaps: [start, end)."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self._chunks: list[Chunk] = []
        self._size = 0

    def append(self, chunk: Chunk) -> None:
        """What was read next."""
        last = self._chunks[-1] if self._chunks else None
        if last is not None and not last.of_tenant and not chunk.of_tenant and last.tenants is chunk.tenants:
            last.end = chunk.end
        else:
            self._chunks.append(chunk)
            self._size += chunk.size + 1
        self.end = chunk.end

    @property
    def is_full(self) -> bool:
        """Whether the oldest has to go before more is read."""
        return self._size > MAX_RECENT and len(self._chunks) > 1

    @property
    def is_overfull(self) -> bool:
        """Whether it goes although nobody is past it: who is so slow reads the topic for itself."""
        return self._size > 2 * MAX_RECENT and len(self._chunks) > 1

    @property
    def oldest_end(self) -> int:
        """Where the oldest chunk ends."""
        return self._chunks[0].end if self._chunks else self.end

    def drop_oldest(self) -> None:
        """Who is not past it reads on from the topic."""
        oldest = self._chunks.pop(0)
        self._size -= oldest.size + 1
        self.start = oldest.end

    def at(self, offset: int, tenant: str) -> Chunk | None:
        """The chunk that holds an offset; None as well for one that was read before the tenant had an endpoint."""
        if not self.start <= offset < self.end:
            return None
        chunk = self._chunks[bisect_right(self._chunks, offset, key=_start) - 1]
        return chunk if tenant in chunk.tenants else None


def _start(chunk: Chunk) -> int:
    return chunk.start


def _offset(fact: Fact) -> int:
    return fact.offset


@dataclass(slots=True)
class Owed:
    """A fact that was refused; `fact` None where it has to be read again."""

    attempts: int
    due_at: int
    fact: Fact | None = None
    in_flight: bool = False


class Cursor:
    """One endpoint in one partition. Not placed until it is known where to begin."""

    def __init__(
        self, tenant: str, partition: int, replays: int, read: int = UNPLACED, owed: Iterable[OwedFact] = ()
    ) -> None:
        self.partition, self.replays = partition, replays
        self.told = False
        """Whether something was delivered since the position was written down."""
        self.read = read
        self.open: set[int] = set()
        """Offsets in flight, or waiting for one of their notification."""
        self.owed = {each["offset"]: Owed(each["attempts"], each["due_at"]) for each in owed}
        self.dropped = self.given_up = 0
        self._tenant = tenant
        self._facts = _NOTHING
        self._index = 0
        self._end = read

    @property
    def position(self) -> int:
        """Everything below is done, but for what is owed."""
        return min(self.open) if self.open else self.read

    def place(self, offset: int) -> None:
        """Begin here."""
        self.read = self._end = offset

    def peek(self, recent: RecentFacts, wanted: Wanted) -> Fact | None:
        """The next fact that is wanted, if it is at hand; all before it counts as read."""
        if self.read == UNPLACED:
            return None
        while True:
            facts = self._facts
            while self._index < len(facts):
                fact = facts[self._index]
                self.read = fact.offset
                if fact in wanted and fact.offset not in self.owed:
                    return fact
                self._index += 1
            self.read = max(self.read, self._end)
            self.let_go()
            chunk = recent.at(self.read, self._tenant)
            if chunk is None:
                return None
            self._load(chunk)

    def take(self, recent: RecentFacts, wanted: Wanted) -> Fact | None:
        """The same, and it is in flight from now on."""
        fact = self.peek(recent, wanted)
        if fact is not None:
            self._index += 1
            self.read = fact.offset + 1
            self.open.add(fact.offset)
        return fact

    def needs(self, recent: RecentFacts) -> int | None:
        """The offset from which the topic has to be read, None where nothing has to: facts are at hand, or there are none."""
        if self._index < len(self._facts) or not UNPLACED < self.read < recent.end:
            return None
        return self.read if recent.at(self.read, self._tenant) is None else None

    def let_go(self) -> None:
        """Hold no fact that is not in flight: it is read again when it is wanted."""
        self._facts, self._index, self._end = _NOTHING, 0, self.read

    def fill(self, chunk: Chunk) -> None:
        """What was read of the topic: the next facts, and those owed that have to be read again."""
        facts = chunk.of_tenant.get(self._tenant, _NOTHING)
        for offset, owed in list(self.owed.items()):
            if owed.fact is None and chunk.start <= offset < chunk.end:
                index = bisect_left(facts, offset, key=_offset)
                if index < len(facts) and facts[index].offset == offset:
                    owed.fact = facts[index]
                else:
                    self.drop_owed(offset)
        if chunk.start <= self.read < chunk.end and self._index >= len(self._facts):
            self._load(chunk)

    def drop_below(self, low: int) -> int:
        """The topic begins at `low`: how many offsets are lost to this endpoint."""
        lost = 0
        for offset in [offset for offset, owed in self.owed.items() if offset < low and owed.fact is None]:
            self.drop_owed(offset)
            lost += 1
        if UNPLACED < self.read < low:
            lost += low - self.read
            self.dropped += low - self.read
            self.place(low)
            self._facts, self._index = _NOTHING, 0
        return lost

    def drop_owed(self, offset: int) -> None:
        """It is no longer in the topic."""
        del self.owed[offset]
        self.dropped += 1

    def _load(self, chunk: Chunk) -> None:
        self._facts = chunk.of_tenant.get(self._tenant, _NOTHING)
        self._index = bisect_left(self._facts, self.read, key=_offset)
        self._end = chunk.end
