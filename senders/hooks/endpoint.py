"""One endpoint: what it is told next, and what an outcome means for it and for the fact; pure but for the clock.

    | outcome                                      | the fact                                 | the endpoint                              |
    |----------------------------------------------|------------------------------------------|-------------------------------------------|
    | delivered                                    | done                                     | works: all that is owed is tried at once  |
    | refused, unreachable; others are taken       | owed, by the schedule; after its end     | goes on                                   |
    |                                              | given up and counted                     |                                           |
    | the same, STRIKES in a row or MAX_OWED owed  | owed, its attempts are not counted       | fails: one request at each time of the    |
    |                                              |                                          | schedule, whose last time is repeated     |
    | throttled                                    | owed, its attempts are not counted       | the same, after the wait it asks for      |
    | gone                                         | owed                                     | disabled, until it is changed             |

So an endpoint that is away costs its position and the facts that were in flight, and no timer per fact. Two facts of one
notification are not in flight at once: their order is kept where nothing is refused.
May import the modules beside it. Never: Kafka, a request.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from runtime.metrics import HOOK_GIVEN_UP
from schemas.events import Endpoint, HookPosition
from senders.hooks.cursor import Cursor, Owed, RecentFacts
from senders.hooks.facts import Fact, Wanted
from senders.hooks.posting import Outcome
from senders.hooks.schedule import is_last, throttled_s, wait_s
from vendors.webhook.signature import Signer

MAX_IN_FLIGHT = 16
MAX_WAITING = 32
"""Facts that wait for another one of their notification."""
MAX_OWED = 64
STRIKES = 8
_UNREACHABLE = 3
"""Strikes of a request without an answer: three of those are no chance."""
LIVE, FAILING, DISABLED = "live", "failing", "disabled"
SEALED = "secret_cannot_be_opened"


@dataclass(slots=True)
class Job:
    """One request to make."""

    cursor: Cursor
    fact: Fact
    owed: Owed | None
    epoch: int


class HookEndpoint:
    """An endpoint with its cursors. `signer` None: its secret cannot be opened, and nothing is sent."""

    def __init__(
        self,
        record: Endpoint,
        signer: Signer | None,
        schedule: Sequence[float],
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._schedule, self._jitter = schedule, jitter
        self.cursors: dict[int, Cursor] = {}
        self.in_flight = self.delivered = 0
        self.failing_since: int | None = None
        self.next_at: int | None = None
        self.failures = 0
        self.disabled = False
        self.cause: str | None = None
        self._epoch = self._strikes = self._turn = 0
        self._busy: dict[str, deque[Job] | None] = {}
        self._waiting = 0
        self._accept(record, signer)

    def _accept(self, record: Endpoint, signer: Signer | None) -> None:
        self.record, self.signer = record, signer
        self.wanted = Wanted(record)
        self.signs_twice = record["previous_until"] is not None

    @property
    def condition(self) -> str:
        """live, failing or disabled."""
        if self.disabled or self.signer is None or not self.record["enabled"]:
            return DISABLED
        return LIVE if self.failing_since is None else FAILING

    def change(self, record: Endpoint, signer: Signer | None, now: int) -> None:
        """It was changed: a new chance."""
        self._accept(record, signer)
        self.disabled = False
        self._recover(now)

    # -- what is next -------------------------------------------------------------------------------------------------

    def next_job(
        self, recents: Mapping[int, RecentFacts], now: int, limit: int, need: Callable[[Cursor, int], None]
    ) -> Job | None:
        """The next request, None where there is none now. `need` hears where the topic has to be read for more."""
        condition = self.condition
        if condition is DISABLED or (self.next_at is not None and now < self.next_at):
            return None
        if self.in_flight >= (limit if condition is LIVE else 1):
            return None
        # What was never tried comes first where it fails: a fact that is refused for itself must not be all it is asked with.
        steps = (self._owed_job, self._new_job) if condition is LIVE else (self._new_job, self._owed_job)
        for step in steps:
            if (job := step(recents, now, need)) is not None:
                self.in_flight += 1
                return job
        return None

    def _in_turn(self) -> list[Cursor]:
        cursors = list(self.cursors.values())
        turn = self._turn % len(cursors) if cursors else 0
        return cursors[turn:] + cursors[:turn]

    def _owed_job(
        self, recents: Mapping[int, RecentFacts], now: int, need: Callable[[Cursor, int], None]
    ) -> Job | None:
        for n, cursor in enumerate(self._in_turn()):
            if cursor.owed and (job := self._due(cursor, now, need)) is not None:
                self._turn += n + 1
                return job
        return None

    def _new_job(self, recents: Mapping[int, RecentFacts], now: int, need: Callable[[Cursor, int], None]) -> Job | None:
        if self._owed() >= MAX_OWED:
            return None
        for n, cursor in enumerate(self._in_turn()):
            recent = recents[cursor.partition]
            while self._waiting < MAX_WAITING and (fact := cursor.take(recent, self.wanted)) is not None:
                job = Job(cursor, fact, None, self._epoch)
                if fact.notification_id not in self._busy:
                    self._busy[fact.notification_id] = None
                    self._turn += n + 1
                    return job
                self._behind(job)
            if (offset := cursor.needs(recent)) is not None:
                need(cursor, offset)
        return None

    def _owed(self) -> int:
        return sum([len(cursor.owed) for cursor in self.cursors.values()])

    def _due(self, cursor: Cursor, now: int, need: Callable[[Cursor, int], None]) -> Job | None:
        for offset, owed in list(cursor.owed.items()):
            if owed.in_flight or owed.due_at > now:
                continue
            if owed.fact is None:
                need(cursor, offset)
            elif owed.fact in self.wanted:
                owed.in_flight = True
                return Job(cursor, owed.fact, owed, self._epoch)
            else:
                del cursor.owed[offset]
        return None

    def _behind(self, job: Job) -> None:
        """It waits for the one of its notification that is in flight."""
        waiting = self._busy[job.fact.notification_id]
        if waiting is None:
            waiting = self._busy[job.fact.notification_id] = deque()
        waiting.append(job)
        self._waiting += 1

    def following(self, job: Job, now: int) -> Job | None:
        """After `settle`: the next fact of the same notification."""
        if job.owed is not None:
            return None
        waiting = self._busy.get(job.fact.notification_id)
        if not waiting:
            self._busy.pop(job.fact.notification_id, None)
            return None
        if self.condition is LIVE and self.next_at is None:
            self._waiting -= 1
            following = waiting.popleft()
            following.epoch = self._epoch
            self.in_flight += 1
            return following
        for other in waiting:
            self._owe(other).due_at = self.next_at or now
        self._waiting -= len(waiting)
        del self._busy[job.fact.notification_id]
        return None

    # -- what came of it ----------------------------------------------------------------------------------------------

    def settle(self, job: Job, outcome: Outcome, now: int) -> None:
        """Apply what a request came to."""
        self.in_flight -= 1
        if outcome.kind == "delivered":
            job.cursor.open.discard(job.fact.offset)
            job.cursor.told = True
            self.delivered += 1
            if job.owed is not None:
                job.cursor.owed.pop(job.fact.offset, None)
            self._strikes = 0
            if self.failing_since is not None and job.epoch == self._epoch:
                self._recover(now)
            return
        owed = self._owe(job)
        fresh = job.epoch == self._epoch  # else it began before the one that says so
        if outcome.kind == "gone":
            self.disabled, self.cause = True, outcome.code
            self._epoch += 1
            owed.due_at = now
            self._let_go()
        elif outcome.kind == "throttled":
            if fresh:
                wait = throttled_s(self._schedule, self.failures + 1, self._jitter(), outcome.retry_after_s)
                self._fail(wait, outcome.code, now)
        elif self.failing_since is not None or not fresh:
            if fresh:
                self._fail(wait_s(self._schedule, self.failures + 1, self._jitter()), outcome.code, now)
        else:
            self._refused(job, owed, outcome, now)
        if self.next_at is not None:
            owed.due_at, owed.fact = self.next_at, None

    def _refused(self, job: Job, owed: Owed, outcome: Outcome, now: int) -> None:
        """By an endpoint that takes others."""
        if outcome.kind == "unreachable":
            self._strikes += _UNREACHABLE
        elif job.owed is None:  # a fact that is refused again and again says nothing of the others
            self._strikes += 1
        if self._strikes >= STRIKES or self._owed() >= MAX_OWED:
            self._fail(wait_s(self._schedule, 1, self._jitter()), outcome.code, now)
            return
        owed.attempts += 1
        if is_last(self._schedule, owed.attempts):
            job.cursor.owed.pop(job.fact.offset, None)
            job.cursor.given_up += 1
            HOOK_GIVEN_UP.inc()
        else:
            owed.due_at = now + int(wait_s(self._schedule, owed.attempts, self._jitter()) * 1000)

    def _owe(self, job: Job) -> Owed:
        """It is no longer in flight."""
        if job.owed is not None:
            job.owed.in_flight = False
            if job.cursor.owed.pop(job.fact.offset, None) is not None:  # the others have their turn first
                job.cursor.owed[job.fact.offset] = job.owed
            return job.owed
        job.cursor.open.discard(job.fact.offset)
        owed = job.cursor.owed[job.fact.offset] = Owed(0, 0, job.fact)
        return owed

    def _fail(self, seconds: float, cause: str, now: int) -> None:
        self.failures += 1
        self.cause = cause
        self.failing_since = now if self.failing_since is None else self.failing_since
        self.next_at = now + int(seconds * 1000)
        self._epoch += 1
        for cursor in self.cursors.values():
            for owed in cursor.owed.values():
                owed.due_at = self.next_at
        self._let_go()

    def _let_go(self) -> None:
        """Nothing is sent for a while: what it is owed is read again then."""
        for cursor in self.cursors.values():
            cursor.let_go()
            for owed in cursor.owed.values():
                if not owed.in_flight:
                    owed.fact = None

    def _recover(self, now: int) -> None:
        self.failing_since = self.next_at = self.cause = None
        self.failures = self._strikes = 0
        self._epoch += 1
        for cursor in self.cursors.values():
            for owed in cursor.owed.values():
                owed.due_at = min(owed.due_at, now)

    # -- positions ----------------------------------------------------------------------------------------------------

    def restore(self, position: HookPosition) -> None:
        """What the owner before knew of it, of a position of this version."""
        if position["condition"] == DISABLED and position["cause"] not in (None, SEALED):
            self.disabled, self.cause = True, position["cause"]
        elif position["condition"] == FAILING and position["failures"] >= self.failures:
            self.failing_since, self.next_at = position["failing_since"], position["next_at"]
            self.failures, self.cause = position["failures"], position["cause"]

    def position_of(self, cursor: Cursor, end: int, now: int) -> HookPosition:
        """The record of one of its cursors; `end` is that of the partition."""
        condition = self.condition
        return {
            "endpoint_id": self.record["endpoint_id"],
            "tenant": self.record["tenant"],
            "partition": cursor.partition,
            "position": cursor.position,
            "owed": [
                {"offset": offset, "attempts": owed.attempts, "due_at": owed.due_at}
                for offset, owed in sorted(cursor.owed.items())
            ],
            "replays": self.record["replays"],
            "endpoint_version": self.record["version"],
            "condition": condition,
            "cause": SEALED if self.signer is None else self.cause,
            "failures": self.failures,
            "failing_since": self.failing_since,
            "next_at": self.next_at,
            "behind": max(0, end - cursor.position),
            "dropped": cursor.dropped,
            "given_up": cursor.given_up,
            "recorded_at": now,
        }
