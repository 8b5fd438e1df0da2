"""A sender's worker on a clock that a test sets: Kafka, the provider and the timers are plain objects, the rest is the real thing.

Every decision between a record and its facts is made by the worker itself. Nothing here waits.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from runtime.errors import TooLargeError
from runtime.kafka.client import Partition
from runtime.process import Context
from runtime.records import InRecord, OutRecord
from runtime.settings import BreakerSettings, SenderSettings, Settings
from runtime.stores import MemoryStore
from schemas.codec import DecodeError, codec
from schemas.events import LANES, ChannelMessage
from schemas.topics import STATUS, TIMERS, catalogue, dispatch_topic
from senders.accounts import Account, Accounts
from senders.admission import Admission, Entry
from senders.ledger import Ledger
from senders.outcomes import costs_nothing
from senders.recheck import SenderViews
from senders.stage import Ended, RequestGuard
from senders.worker import Worker
from vendors.sender import SendResult

START_S = 1_800_000_000.0
PARTITIONS = 4

Answer = Callable[[ChannelMessage], SendResult | None]
"""What the provider says to a message; None: not yet."""


class Kafka:
    """Logs of the dispatch topics, and the one member of their group."""

    def __init__(self, partitions: int = PARTITIONS) -> None:
        self.logs: dict[Partition, list[InRecord]] = {}
        self.paused: set[Partition] = set()
        self.commits: dict[Partition, tuple[int, str]] = {}
        self.count = partitions
        self._next: dict[Partition, int] = {}
        self._join: Callable[[], None] | None = None
        self.closed = False

    def append(self, record: OutRecord, now: int) -> InRecord:
        partition = max(record.partition, 0)
        log = self.logs.setdefault((record.topic, partition), [])
        log.append(
            InRecord(record.topic, partition, len(log), now, record.key, record.value, record.headers)
        )  # fmt: skip
        return log[-1]

    def subscribe(
        self, topics: Sequence[str], *, on_assign: Callable[[list[Partition]], Mapping[Partition, int] | None],
        on_revoke: Callable[[list[Partition]], None], on_lost: Callable[[list[Partition]], None],
    ) -> None:  # fmt: skip
        def join() -> None:
            given = [(topic, n) for topic in topics for n in range(self.count)]
            starts = on_assign(given) or {}
            self._next = {partition: max(0, starts.get(partition, 0)) for partition in given}

        self._join = join

    def consume(self, max_records: int, timeout_s: float) -> list[InRecord]:
        if self._join:
            join, self._join = self._join, None
            join()
        found: list[InRecord] = []
        for partition, offset in self._next.items():
            if partition not in self.paused:
                new = self.logs.get(partition, [])[offset : offset + max_records - len(found)]
                self._next[partition] = offset + len(new)
                found += new
        return found

    def commit(self, offsets: Mapping[Partition, int], metadata: Mapping[Partition, str] | None = None) -> None:
        for partition, offset in offsets.items():
            self.commits[partition] = offset, (metadata or {}).get(partition, "")

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]:
        return {partition: self.commits.get(partition, (-1, "")) for partition in partitions}

    def partitions_of(self, topic: str) -> list[Partition]:
        return [(topic, n) for n in range(self.count)]

    def pause(self, partitions: Iterable[Partition]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Iterable[Partition]) -> None:
        self.paused -= set(partitions)

    def close(self) -> None:
        self.closed = True


class Ledgers:
    """The ledger topic of a world without another owner."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.broken: Exception | None = None
        self.advanced = 0

    def partition(self, dispatch: Partition, lane: str) -> Partition:
        return f"ledger.{lane}", dispatch[1]

    def read(self, partitions: Sequence[Partition]) -> int:
        return 0

    def advance(self, partitions: Sequence[Partition]) -> None:
        if self.broken:
            raise self.broken
        self.advanced += 1

    def flush(self) -> None:
        self._ledger.flush({}, 0)

    def close(self) -> None: ...


class Provider:
    """Limits of an account; what it answers is the stage's."""

    rate_per_second: float | None = None

    def __init__(self, channel: str, name: str, platforms: frozenset[str] | None, limit: int) -> None:
        self.channel, self.name, self.platforms, self.max_in_flight = channel, name, platforms, limit

    async def start(self) -> None: ...
    async def send(self, message: ChannelMessage) -> SendResult:
        raise AssertionError("the stage answers")

    async def close(self) -> None: ...


class World:
    """One sender process of a channel, alone in its group."""

    def __init__(
        self, answer: Answer, *, channel: str = "email", breaker: BreakerSettings | None = None, limit: int = 64,
        accounts: Sequence[tuple[str, frozenset[str] | None]] = (("mail", None),), sender: SenderSettings | None = None,
        partitions: int = PARTITIONS, lanes: Sequence[str] = LANES, views: SenderViews | None = None,
    ) -> None:  # fmt: skip
        self.now, self.answer, self.channel = START_S, answer, channel
        self.breaker = breaker or BreakerSettings()
        self.kafka = Kafka(partitions)
        self.done: deque[Ended] = deque()
        self.in_flight: list[tuple[Entry, float]] = []
        self.requests: list[tuple[float, ChannelMessage]] = []
        """What the provider was asked, and when."""
        self.facts: list[OutRecord] = []
        self.limits: dict[str, int] = {}
        """Bytes of a value that a topic takes, where it takes less than ours."""
        self.timers: list[dict[str, Any]] = []
        self.ledger = Ledger(MemoryStore())
        self.ledgers = Ledgers(self.ledger)
        made = [
            Account(Provider(channel, name, platforms, limit), self.breaker, lambda: self.now)
            for name, platforms in accounts
        ]
        self.accounts = Accounts(made)
        settings = Settings(sender=sender or SenderSettings())
        self.admission = Admission(self.accounts, settings.sender.window)
        self._guard = RequestGuard(settings.sender.max_retries)
        self.worker = Worker(
            Context("sender", settings),
            channel,
            lanes,
            consumer=self.kafka,
            ledgers=self.ledgers,
            producer=self,
            stage=self,
            admission=self.admission,
            views=views or SenderViews({}, {}, {}),
            ledger=self.ledger,
            rng=random.Random(7),
            clock=lambda: self.wall,
            monotonic=lambda: self.now,
        )
        self.worker.join()

    @property
    def wall(self) -> int:
        return int(self.now * 1000)

    # -- what the worker is given ------------------------------------------------------------------------------------

    def publish(self, records: Sequence[OutRecord]) -> None:
        refused = [record for record in records if len(record.value or b"") > self.limits.get(record.topic, 1 << 30)]
        for record in records:
            assert isinstance(record, OutRecord)
            if record in refused:
                continue
            self.facts.append(record)
            if record.topic == TIMERS:
                self.timers.append(codec("Timer").decode(record.value))
            elif record.topic.startswith("notify.dispatch."):
                self.kafka.append(record, self.wall)
        if refused:
            raise TooLargeError("refused for its size", refused)

    def submit(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if self._guard.allows(entry.message):
                self.requests.append((self.now, entry.message))
                self.in_flight.append((entry, self.now))
            else:
                self.done.append(Ended(entry, self.wall, refusal=("failed", "retries_exhausted", "request guard")))
        self.answer_what_can_be()

    def wait(self, timeout_s: float) -> None:
        self.now += timeout_s

    # -- what a test does --------------------------------------------------------------------------------------------

    def answer_what_can_be(self) -> None:
        waiting = []
        for entry, began in self.in_flight:
            result = self.answer(entry.message)
            if result is None:
                waiting.append((entry, began))
                continue
            if costs_nothing(result, probe=entry.probe):
                self._guard.was_throttled(entry.message)
            self._guard.ended(entry.message)
            self.done.append(Ended(entry, self.wall, result=result, latency_ms=1, began=began))
        self.in_flight = waiting

    def send(self, message: Mapping[str, Any], headers: Sequence[tuple[str, bytes]] = (), partition: int = 0) -> None:
        """Put a message on its dispatch topic."""
        value = codec("ChannelMessage").encode(message)
        self.put(value, message["lane"], headers, partition)

    def put(
        self, value: bytes | None, lane: str = "normal", headers: Sequence[tuple[str, bytes]] = (), partition: int = 0
    ) -> None:
        record = OutRecord(dispatch_topic(self.channel, lane), b"t:u", value, headers, partition)
        self.kafka.append(record, self.wall)

    def turn(self, after_s: float = 0.05) -> None:
        """Let time pass, fire what is due, let the provider answer, and let the worker do its turn."""
        self.now += after_s
        due = [timer for timer in self.timers if timer["due_at"] <= self.wall]
        self.timers = [timer for timer in self.timers if timer["due_at"] > self.wall]
        for timer in due:
            headers = [(header["name"], header["value"]) for header in timer["headers"]]
            self.kafka.append(OutRecord(timer["topic"], timer["key"], timer["value"], headers, 0), self.wall)
        self.answer_what_can_be()
        self.worker.turn()

    def settle(self, turns: int = 20) -> None:
        for _ in range(turns):
            self.turn()

    def next_timer(self) -> None:
        """Let time pass until a timer is due, and let the worker do what comes of it."""
        self.now = max(self.now, min(timer["due_at"] for timer in self.timers) / 1000)
        self.settle(3)

    # -- what a test asks --------------------------------------------------------------------------------------------

    def statuses(self, *states: str) -> list[dict[str, Any]]:
        found = [codec("DeliveryStatus").decode(fact.value) for fact in self.facts if fact.topic == STATUS]
        return [status for status in found if not states or status["state"] in states]

    def states(self) -> Counter[str]:
        return Counter(status["state"] for status in self.statuses())

    def of(self, topic: str) -> list[dict[str, Any]]:
        """Decoded facts of a topic. A fact that its reader could not decode fails the test."""
        name = catalogue()[topic].record
        try:
            return [codec(name).decode(fact.value) for fact in self.facts if fact.topic == topic]
        except DecodeError as exc:
            raise AssertionError(f"the sender wrote what is no {name}") from exc

    def undone(self) -> int:
        """Records that are not released by the last commit."""
        released = {partition: claim[0] for partition, claim in self.kafka.commits.items()}
        return sum(len(log) - released.get(partition, 0) for partition, log in self.kafka.logs.items())
