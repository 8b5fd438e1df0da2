"""A channel's senders on a broker in memory and a clock that a test sets: the provider and the timers are the test's.

Every decision between a record and its facts is made by the real worker, through the real consumer and ledger reader.
A process may be killed before each step of the order, and another take over. Nothing here waits.
May import senders and tests.support.broker. Never: a socket, a thread.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NoReturn

from runtime.dead_letters import publish_dead_letters
from runtime.kafka.client import Partition
from runtime.process import Context
from runtime.records import ProducerRecord
from runtime.settings import BreakerSettings, SenderSettings, Settings
from runtime.stores import MemoryStore
from schemas.codec import DecodeError, codec
from schemas.events import LANES, ChannelMessage
from schemas.topics import DEAD_LETTERS, STATUS, TIMERS, catalogue, dispatch_topic, ledger_topic
from senders.accounts import Account, Accounts
from senders.admission import Admission, QueuedMessage
from senders.consumers import sender_group
from senders.ledger import Ledger, LedgerReader
from senders.outcomes import costs_nothing
from senders.recheck import SenderViews
from senders.stage import RequestGuard, SendCompletion, asks_after, looked_up
from senders.worker import Worker
from tests.support.broker import MemoryBroker
from vendors.sender import CANNOT_ASK, Doubt, SendResult

START_S = 1_800_000_000.0
PARTITIONS = 4

Answer = Callable[[ChannelMessage], SendResult | None]
"""What the provider says to a message; None: not yet."""
Step = Literal["claim", "send", "facts", "ledger", "release"]
"""The order of a message: its claim is committed, it is sent, its facts are acknowledged, its ledger entry, its release."""


class Killed(BaseException):
    """The process was killed: nothing of it runs any more."""


class Exited(BaseException):
    """The process has ended itself, for this reason."""


class Provider:
    """Limits of an account; what it answers is the stage's."""

    rate_per_second: float | None = None

    def __init__(
        self,
        channel: str,
        name: str,
        platforms: frozenset[str] | None,
        limit: int,
        repeatable_s: float,
        reconcile_after_s: float | None,
    ) -> None:
        self.channel, self.name, self.platforms, self.max_in_flight = channel, name, platforms, limit
        self.repeatable_s, self.reconcile_after_s = repeatable_s, reconcile_after_s

    async def start(self) -> None: ...
    async def send(self, message: ChannelMessage) -> SendResult:
        raise AssertionError("the stage answers")

    async def look_up(self, doubt: Doubt) -> SendResult:
        raise AssertionError("the stage answers")

    async def close(self) -> None: ...


class Process:
    """One sender process: a member of the group, its ledger, what it has in flight. It is also its worker's send stage."""

    def __init__(
        self, world: World, accounts: Sequence[tuple[str, frozenset[str] | None]], limit: int, lanes: Sequence[str]
    ) -> None:
        self._world = world
        self.done: deque[SendCompletion] = deque()
        self.in_flight: list[tuple[QueuedMessage, float]] = []
        self.ledger = Ledger(MemoryStore())
        broker, settings = world.broker, world.settings

        def account(name: str, platforms: frozenset[str] | None) -> Account:
            provider = Provider(world.channel, name, platforms, limit, world.repeatable_s, world.reconcile_after_s)
            return Account(provider, world.breaker, world.monotonic)

        self.accounts = Accounts([account(name, platforms) for name, platforms in accounts])
        self.admission = Admission(self.accounts, settings.sender.window)
        self._guard = RequestGuard(settings.sender.max_retries)
        self.consumer = broker.consumer(sender_group(world.channel), monotonic=world.monotonic)
        producer = broker.producer()
        self.context = Context("sender", settings, exit_now=_exited)
        self.worker = Worker(
            self.context,
            world.channel,
            lanes,
            consumer=self.consumer,
            ledgers=LedgerReader(
                broker.consumer(detect_eof=True, monotonic=world.monotonic),
                world.channel,
                self.ledger,
                partial(publish_dead_letters, producer.publish),
                lambda: world.wall,
                world.monotonic,
            ),
            producer=producer,
            stage=self,
            admission=self.admission,
            views=world.views,
            ledger=self.ledger,
            rng=random.Random(7),
            clock=lambda: world.wall,
            monotonic=world.monotonic,
        )
        self.worker.join()

    def submit(self, messages: Sequence[QueuedMessage]) -> None:
        self._world.reached("send")
        for queued in messages:
            if self._guard.allows(queued.message):
                asked = self._world.look_ups if self._world.looks_up(queued) else self._world.requests
                asked.append((self._world.now, queued.message))
                self.in_flight.append((queued, self._world.now))
            else:
                refusal = ("failed", "retries_exhausted", "request guard")
                self.done.append(SendCompletion(queued, self._world.wall, refusal=refusal))
        self.answer_what_can_be()

    def wait(self, timeout_s: float) -> None:
        self._world.now += timeout_s
        self.answer_what_can_be()

    def answer_what_can_be(self) -> None:
        """Hand back what the provider has an answer to."""
        waiting = []
        for queued, began in self.in_flight:
            looks_up = self._world.looks_up(queued)
            result = (self._world.shown if looks_up else self._world.answer)(queued.message)
            if result is not None and looks_up:
                result = looked_up(result, queued.message, self._world.settings.sender.max_retries)
            if result is None:
                waiting.append((queued, began))
                continue
            if costs_nothing(result, probe=queued.probe):
                self._guard.was_throttled(queued.message)
            self._guard.ended(queued.message)
            self.done.append(SendCompletion(queued, self._world.wall, result=result, latency_ms=1, began=began))
        self.in_flight = waiting


def _exited(reason: str) -> NoReturn:
    raise Exited(reason)


def _claimed(committed: tuple[int, str]) -> int:
    """Up to which offset a commit claims."""
    return int(committed[1].partition(":")[0])


class World:
    """The senders of a channel, one process at a time unless a test lets another take over."""

    def __init__(
        self,
        answer: Answer,
        *,
        channel: str = "email",
        breaker: BreakerSettings | None = None,
        limit: int = 64,
        accounts: Sequence[tuple[str, frozenset[str] | None]] = (("mail", None),),
        sender: SenderSettings | None = None,
        partitions: int = PARTITIONS,
        lanes: Sequence[str] = LANES,
        views: SenderViews | None = None,
        repeatable_s: float = 0.0,
        reconcile_after_s: float | None = None,
        shown: Answer = lambda _: CANNOT_ASK,
    ) -> None:
        """`shown`: what the provider says to a look-up."""
        self.now, self.answer, self.channel, self.repeatable_s = START_S, answer, channel, repeatable_s
        self.reconcile_after_s, self.shown = reconcile_after_s, shown
        self.breaker = breaker or BreakerSettings()
        self.settings = Settings(sender=sender or SenderSettings())
        self.views = views or SenderViews({}, {}, {})
        self.broker = MemoryBroker(lambda: self.wall)
        for lane in LANES:
            for topic in (dispatch_topic(channel, lane), ledger_topic(channel, lane)):
                self.broker.create(topic, partitions)
        for topic in (STATUS, TIMERS, DEAD_LETTERS):
            self.broker.create(topic, partitions)
        self.broker.before_publish, self.broker.before_commit = self._publishing, self._committing
        self.steps: list[Step] = []
        """What was done, in its order; `send` is one of a batch of them."""
        self.before: dict[Step, Callable[[], None]] = {}
        """What happens when a process is about to do a step, once."""
        self.requests: list[tuple[float, ChannelMessage]] = []
        """What the provider was asked to send, and when."""
        self.look_ups: list[tuple[float, ChannelMessage]] = []
        """What it was asked after, and when."""
        self.timers: list[dict[str, Any]] = []
        self._timers_seen = self._statuses_seen = 0
        self._statuses: list[dict[str, Any]] = []
        self._make = partial(Process, self, accounts, limit, lanes)
        self.process = self._make()

    @property
    def wall(self) -> int:
        return int(self.now * 1000)

    def monotonic(self) -> float:
        return self.now

    @property
    def worker(self) -> Worker:
        return self.process.worker

    @property
    def admission(self) -> Admission:
        return self.process.admission

    @property
    def accounts(self) -> Accounts:
        return self.process.accounts

    @property
    def ledger(self) -> Ledger:
        return self.process.ledger

    @property
    def in_flight(self) -> list[tuple[QueuedMessage, float]]:
        return self.process.in_flight

    # -- the order ---------------------------------------------------------------------------------------------------

    def looks_up(self, queued: QueuedMessage) -> bool:
        """Whether the request of a message asks after it."""
        return asks_after(queued, self.process.accounts[queued.account].sender)

    def reached(self, step: Step) -> None:
        """Note what a process is about to do; raises Killed where it does not come to that."""
        self.before.pop(step, lambda: None)()
        self.steps.append(step)

    def kill_before(self, step: Step) -> None:
        """Have the process killed when it is about to do this."""

        def kill() -> None:
            raise Killed(step)

        self.before[step] = kill

    def _publishing(self, records: Sequence[ProducerRecord]) -> None:
        self.reached("ledger" if records[0].topic.startswith("notify.ledger.") else "facts")

    def _committing(self, offsets: Mapping[Partition, tuple[int, str]]) -> None:
        """Note a claim or a release. A commit may be both, and is a claim then; an owner's first may be neither."""
        group = self.broker.group(sender_group(self.channel))
        before = {partition: group.committed.get(partition, (0, "0:0")) for partition in offsets}
        if any(_claimed(offsets[partition]) > _claimed(before[partition]) for partition in offsets):
            self.reached("claim")
        elif before != offsets:
            self.reached("release")

    # -- what a test does --------------------------------------------------------------------------------------------

    def send(self, message: Mapping[str, Any], headers: Sequence[tuple[str, bytes]] = (), partition: int = 0) -> None:
        """Put a message on its dispatch topic."""
        value = codec("ChannelMessage").encode(message)
        self.put(value, message["lane"], headers, partition)

    def put(
        self, value: bytes | None, lane: str = "normal", headers: Sequence[tuple[str, bytes]] = (), partition: int = 0
    ) -> None:
        self.broker.append(ProducerRecord(dispatch_topic(self.channel, lane), b"t:u", value, headers, partition))

    def turn(self, after_s: float = 0.05) -> None:
        """Let time pass, fire what is due, let the provider answer, and let the worker do its turn."""
        self.now += after_s
        due = [timer for timer in self.timers if timer["due_at"] <= self.wall]
        self.timers = [timer for timer in self.timers if timer["due_at"] > self.wall]
        for timer in due:
            headers = [(header["name"], header["value"]) for header in timer["headers"]]
            self.broker.append(ProducerRecord(timer["topic"], timer["key"], timer["value"], headers, 0))
        self.process.answer_what_can_be()
        try:
            self.worker.run_once()
        finally:
            self._take_timers()

    def _take_timers(self) -> None:
        new, self._timers_seen = self.facts[self._timers_seen :], len(self.facts)
        self.timers += [codec("Timer").decode(fact.value) for fact in new if fact.topic == TIMERS]

    def settle(self, turns: int = 20) -> None:
        for _ in range(turns):
            self.turn()

    def next_timer(self) -> None:
        """Let time pass until a timer is due, and let the worker do what comes of it."""
        self.now = max(self.now, min(timer["due_at"] for timer in self.timers) / 1000)
        self.settle(3)

    def take_over(self) -> Process:
        """Another process gets the partitions; the one that had them, which may live on."""
        before = self.process
        self.broker.expire(before.consumer, stopped=True)
        self.process = self._make()
        return before

    # -- what a test asks --------------------------------------------------------------------------------------------

    @property
    def facts(self) -> list[ProducerRecord]:
        """Everything that was published, in its order."""
        return self.broker.published

    def statuses(self, *states: str) -> list[dict[str, Any]]:
        new, self._statuses_seen = self.facts[self._statuses_seen :], len(self.facts)
        self._statuses += [codec("DeliveryStatus").decode(fact.value) for fact in new if fact.topic == STATUS]
        return [status for status in self._statuses if not states or status["state"] in states]

    def states(self) -> Counter[str]:
        return Counter(status["state"] for status in self.statuses())

    def of(self, topic: str) -> list[dict[str, Any]]:
        """Decoded facts of a topic. A fact that its reader could not decode fails the test."""
        name = catalogue()[topic].record
        try:
            return [codec(name).decode(fact.value) for fact in self.facts if fact.topic == topic]
        except DecodeError as exc:
            raise AssertionError(f"the sender wrote what is no {name}") from exc

    def committed(self, partition: int = 0, lane: str = "normal") -> tuple[int, str]:
        """Offset and metadata of a dispatch partition; (-1, "") where nothing is committed."""
        group = self.broker.group(sender_group(self.channel))
        return group.committed.get((dispatch_topic(self.channel, lane), partition), (-1, ""))

    def undone(self) -> int:
        """Records that are not released by the last commit."""
        left = 0
        for lane in LANES:
            for number, log in enumerate(self.broker.logs(dispatch_topic(self.channel, lane)) or ()):
                left += log.end - max(0, self.committed(number, lane)[0])
        return left
