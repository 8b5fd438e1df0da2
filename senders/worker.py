"""The send loop of every channel and provider. It commits a claim before it sends, and records an outcome before it
releases the claim. Each iteration:
    1. Commit once per partition: claim new records, release those recorded in the last iteration.
    2. Submit the newly claimed messages. They are sent concurrently.
    3. Publish finished outcomes: status events and timers, wait for acks; then ledger entries, wait for acks.
A new message therefore waits for one commit, not for earlier outcomes, whose status events are on their way meanwhile.
The consumer group fences the commit: a replaced owner gets the error before it sends, and exits. Kafka calls run on one
thread, sends on the event loop.
On any doubt the process exits. The next owner reads the claim (commit metadata) and the ledger, and sends only
in-doubt messages again, flagged possible_duplicate unless their vendor recognises the repetition (repeats.py).
May import runtime. Never: a provider's name, a channel's payload.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import INTERNAL_ERROR, UNDECODABLE, DeadLetterBrake, is_redriven, publish_dead_letters
from runtime.errors import DeadLetterFlood, SettingsError, TooLargeError, UnavailableError
from runtime.kafka.client import Partition
from runtime.kafka.consumer import BEGINNING, CommitError, FencedError
from runtime.logs import get_logger
from runtime.metrics import COMMIT_SECONDS, DUPLICATES_DROPPED, IN_DOUBT, IN_FLIGHT, PARKED
from runtime.process import Context, crash_point
from runtime.records import ConsumerRecord, ProducerRecord, size_of
from schemas.codec import DecodeError
from schemas.events import LANES, ChannelMessage
from schemas.topics import DEAD_LETTERS, STATUS, dispatch_topic, ledger_ms
from senders.admission import Admission, QueuedMessage
from senders.claims import Claim, ClaimTracker, parse_claim
from senders.intake import cut, dead_letter_records, read_message, unfit
from senders.ledger import Ledger
from senders.limits import part_of
from senders.outcomes import (
    CLAIMED_BY_ENDED,
    NO_LONGER_REPEATED,
    Attempt,
    Outcome,
    from_result,
    is_account_failure,
    no_account_works,
    no_next_attempt,
    refuse,
    settle,
)
from senders.read_ahead import PartitionBuffer, ReadAhead
from senders.recheck import SenderViews, recheck
from senders.stage import SendCompletion
from vendors.sender import InDoubt, SendResult

log = get_logger("sender")

COMMIT_TIMEOUT_S = 45.0
"""How long a commit is retried while the broker is unavailable; the group's fence decides whether it still counts."""
BACKLOG = 8_000
"""Records read ahead per partition: at the size of a login code they cost more by their number than by their bytes."""
MAX_RECORDS = 2_000
"""Facts of one turn: what is decided without a request must not hold up what is being sent."""
MAX_RECORD_BYTES = 16 << 20
"""Of one turn as well: dead letters hold their records."""
MANY = 16
"""Outcomes of one turn: so many share its commit that the next one may follow after half of the interval."""
SWEEP_S = 1.0
"""How often parked messages are looked at: they expire and are cancelled while they wait."""
SWEPT = 200
"""Most of them in one iteration: 12,000 at once delayed an iteration by 200 ms, and with it every send."""
SAVE_POSITIONS_S = 300.0
PRUNE_S = 3_600.0


class DispatchConsumer(Protocol):
    """The part of runtime.kafka.Consumer that is used: a member of the channel's group."""

    def subscribe(
        self,
        topics: Sequence[str],
        *,
        on_assign: Callable[[list[Partition]], Mapping[Partition, int] | None],
        on_revoke: Callable[[list[Partition]], None],
        on_lost: Callable[[list[Partition]], None],
    ) -> None: ...
    def consume(self, max_records: int, timeout_s: float) -> list[ConsumerRecord]: ...
    def commit(self, offsets: Mapping[Partition, int], metadata: Mapping[Partition, str] | None = None) -> None: ...
    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, str]]: ...
    def partitions_for_topic(self, topic: str) -> list[Partition]: ...
    def pause(self, partitions: Iterable[Partition]) -> None: ...
    def resume(self, partitions: Iterable[Partition]) -> None: ...
    def close(self) -> None: ...


class Ledgers(Protocol):
    """The part of LedgerReader that is used."""

    def partition(self, dispatch: Partition, lane: str) -> Partition: ...
    def read(self, partitions: Sequence[Partition]) -> int: ...
    def advance(self, partitions: Sequence[Partition]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Sends(Protocol):
    """The part of SendStage that is used."""

    done: deque[SendCompletion]

    def submit(self, messages: Sequence[QueuedMessage]) -> None: ...
    def wait(self, timeout_s: float) -> None: ...


class Publisher(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    def publish(self, records: Sequence[ProducerRecord]) -> None: ...
    def start(self, records: Sequence[ProducerRecord]) -> Publishing: ...


class Publishing(Protocol):
    """Records on their way."""

    def wait(self) -> None: ...


@dataclass(slots=True)
class Owned(PartitionBuffer):
    """What the owner of one dispatch partition knows."""

    partition: Partition
    lane: str
    tracker: ClaimTracker
    takeover: Claim
    backlog: deque[ConsumerRecord] = field(default_factory=deque)
    next_offset: int = -1
    paused: bool = False
    size: int = 0


_Made = tuple[ConsumerRecord, Outcome]


class _Facts(NamedTuple):
    """What a turn tells of what has ended and of what was decided without a request."""

    ended: list[SendCompletion]
    made: list[_Made]
    """First those decided without a request."""
    records: list[ProducerRecord]
    publishing: Publishing | None
    """None where dead letters go first."""


@dataclass(slots=True)
class Iteration:
    """What one turn records and claims."""

    records: list[ProducerRecord] = field(default_factory=list)
    decided: list[_Made] = field(default_factory=list)
    """Outcomes known without a request; `records` has theirs."""
    finished: list[tuple[Owned, int]] = field(default_factory=list)
    """Offsets decided without a request: marked waiting until their facts are acknowledged, so that they are never in doubt."""
    claims: list[QueuedMessage] = field(default_factory=list)
    size: int = 0
    """Bytes of the facts."""

    def add(self, records: Iterable[ProducerRecord]) -> None:
        for record in records:
            self.records.append(record)
            self.size += size_of(record.key, record.value, record.headers)

    @property
    def full(self) -> bool:
        """Whether the rest has to wait for the next turn."""
        return len(self.records) >= MAX_RECORDS or self.size >= MAX_RECORD_BYTES


class Worker:
    """The Kafka side: owns partitions of a channel's dispatch topics; every method on one thread."""

    def __init__(
        self,
        context: Context,
        channel: str,
        lanes: Sequence[str],
        *,
        consumer: DispatchConsumer,
        ledgers: Ledgers,
        producer: Publisher,
        stage: Sends,
        admission: Admission,
        views: SenderViews,
        ledger: Ledger,
        rng: random.Random,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._context, self._channel = context, channel
        self._consumer, self._ledgers, self._producer, self._stage = consumer, ledgers, producer, stage
        self._admission, self._views, self._ledger, self._rng = admission, views, ledger, rng
        self._clock, self._monotonic = clock, monotonic
        self._settings = context.settings.sender
        self._lanes = {dispatch_topic(channel, lane): lane for lane in lanes}
        self._owned: dict[Partition, Owned] = {}
        self._read_ahead = ReadAhead(self._settings.read_ahead_mib << 20, BACKLOG)
        self._next_iteration = self._last_sweep = -math.inf
        self._recorded = 0
        self._to_sweep: deque[QueuedMessage] = deque()
        self._ended: list[SendCompletion] = []
        """Their requests have ended; they are recorded next."""
        self._positions_saved = self._pruned = monotonic()
        self.assigned = False
        self._brake, self._looked_at = DeadLetterBrake(context.settings.dead_letters, "sender", monotonic=monotonic), 0
        context.health.require("dead letters", self._brake.not_ready)

    def run(self) -> None:
        """Send until the context stops, then let in-flight messages end and record them."""
        self.join()
        try:
            while not self._context.stopping.is_set():
                self.run_once()
            self._drain()
            self._save_positions()
        except FencedError as exc:
            self._context.exit_now(f"no longer the owner: {exc}")
        except SettingsError:
            self._consumer.close()  # at once: the others of the group are to have its partitions
            raise
        self._consumer.close()
        self._ledgers.close()

    def join(self) -> None:
        """Become one of the group; it gives partitions within a turn."""
        self._consumer.subscribe(
            list(self._lanes), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def run_once(self) -> None:
        """Read what is there, claim and send what may go, record what has ended."""
        busy = self._admission.in_flight or any(o.backlog or o.tracker.changed for o in self._owned.values())
        wait_s = 0.25
        if busy or self._admission.parked:
            wait_s = max(0.0, self._next_iteration - self._monotonic())
        self._take(self._consumer.consume(self._read_ahead.slice, wait_s))
        self._work()
        self._maintain_ledger()

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the records that are read ahead, parked or in flight."""
        return sum(owned.size for owned in self._owned.values())

    # -- ownership --------------------------------------------------------------------------------------------------

    def _on_assign(self, partitions: list[Partition]) -> dict[Partition, int]:
        """Take over: committed offset and metadata first, then the ledger to its end, then work."""
        committed = self._consumer.committed(partitions)
        self._ledgers.read([self._ledgers.partition(partition, self._lanes[partition[0]]) for partition in partitions])
        starts = {}
        for partition in partitions:
            offset, metadata = committed[partition]
            claim = parse_claim(offset, metadata) if offset >= 0 else Claim(0, 0)
            self._owned[partition] = Owned(
                partition,
                self._lanes[partition[0]],
                ClaimTracker(claim),
                claim,
                next_offset=claim.lo if offset >= 0 else -1,
            )
            starts[partition] = claim.lo if offset >= 0 else BEGINNING
        self._take_share()
        self.assigned = True
        log.info("partitions assigned", partitions=len(partitions), ledger_entries=len(self._ledger))
        return starts

    def _take_share(self) -> None:
        """Count the processes of every lane, so that all processes together never exceed an account's limits.

        Raises SettingsError when there are more processes than an account has slots: its messages here would never be sent.
        """
        partitions = {
            lane: len(self._consumer.partitions_for_topic(dispatch_topic(self._channel, lane))) for lane in LANES
        }
        owned = {(it.lane, it.partition[1]) for it in self._owned.values()}
        accounts = self._admission.accounts
        accounts.take_share(len(owned) / sum(partitions.values()), partial(part_of, owned=owned, partitions=partitions))
        if owned and (names := accounts.without_slots()):
            self._forget()
            raise SettingsError(
                f"max_in_flight of {', '.join(names)} is less than there are {self._channel} senders, so that none of it is "
                "left for this one; run fewer of them, or raise max_in_flight"
            )

    def _on_revoke(self, _: list[Partition]) -> None:
        self._drain()
        self._forget()

    def _on_lost(self, partitions: list[Partition]) -> None:
        if self._admission.in_flight:
            self._context.exit_now("the group revoked our partitions while messages were in flight")
        self._forget()

    def _forget(self) -> None:
        self._admission.clear_parked()
        self._to_sweep.clear()
        self._owned.clear()

    def _drain(self) -> None:
        """Claim nothing more, wait for what is in flight, record and release it."""
        deadline = self._monotonic() + self._settings.drain_timeout_s
        while self._admission.in_flight and self._monotonic() < deadline:
            self._stage.wait(0.05)
            self._record(Iteration())
        if self._admission.in_flight:
            self._context.exit_now(
                f"{len(self._admission.in_flight)} messages did not end in time; they stay claimed and in doubt"
            )
        self._record(Iteration())

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _take(self, records: Sequence[ConsumerRecord]) -> None:
        size = 0
        for record in records:
            owned = self._owned.get((record.topic, record.partition))
            if owned is not None:
                size += owned.hold(record)
        self._read_ahead.took(len(records), size)
        pause, resume = self._read_ahead.watch(self._owned.values())
        if pause:
            self._consumer.pause(pause)
        if resume:
            self._consumer.resume(resume)

    def _work(self) -> None:
        now = self._monotonic()
        if now < self._next_iteration:
            return
        pause_s = self._settings.commit_interval_ms / 1000
        self._next_iteration = now + (pause_s / 2 if self._recorded >= MANY else pause_s)
        self._collect()
        iteration = Iteration()
        if self._brake.not_ready():
            self._record(iteration)
            return
        if now - self._last_sweep >= SWEEP_S and not self._to_sweep:
            self._last_sweep = now
            self._admission.accounts.report()
            self._to_sweep.extend(self._admission.parked)
        self._sweep(iteration)
        for lane in LANES:
            for queued in self._admission.admit_parked(lane):
                self._claim(queued, iteration)
            mine = [owned for owned in self._owned.values() if owned.lane == lane and owned.backlog]
            # Round robin over the partitions, so that a long one does not starve its neighbours.
            try:
                while mine and not iteration.full:
                    mine = [owned for owned in mine if self._take_next(owned, iteration)]
            except DeadLetterFlood as exc:
                log.critical("halted", reason=str(exc))
                self._consumer.pause(list(self._owned))
                break
        self._record(iteration)

    def _take_next(self, owned: Owned, iteration: Iteration) -> bool:
        """Take one record of a partition; False when it has no more to give this turn."""
        if not owned.backlog or not owned.tracker.has_capacity(owned.backlog[0].offset):
            return False
        if not self._admission.has_capacity(owned.lane) or not self._admission.may_look_ahead(owned.lane):
            return False
        record = owned.backlog[0]
        if owned.takeover.finished(record.offset):
            self._next(owned)
            owned.let_go(record)
            return True
        self._looked_at += 1
        try:
            message = read_message(record)
        except DecodeError as exc:
            self._dead_letter(owned, record, UNDECODABLE, exc, iteration)
            return True
        try:
            decided = self._decision(owned, record, message)
        # An unforeseen error in one record must not delay the records behind it.
        except Exception as exc:
            log.exception("dead-lettered", notification_id=message["notification_id"])
            self._dead_letter(owned, record, INTERNAL_ERROR, exc, iteration)
            return True
        self._next(owned)
        if self._looked_at >= MAX_RECORDS:
            self._count()
        if isinstance(decided, str):
            DUPLICATES_DROPPED.labels(self._channel, decided).inc()
            self._finish(owned, record, iteration)
        elif isinstance(decided, Outcome):
            self._decide(owned, record, message["message_id"], decided, iteration)
        else:
            self._try_admit(owned, decided, iteration)
        return True

    def _decision(self, owned: Owned, record: ConsumerRecord, message: ChannelMessage) -> str | Outcome | QueuedMessage:
        """Why the record is a duplicate, how its message ends without a request, or what is to be sent. Changes nothing."""
        now = self._clock()
        if cannot := unfit(message, self._channel, owned.lane):
            message = cut(message, self._channel, owned.lane)
        message_id = message["message_id"]
        if message["replay"] and (attempt := self._ledger.resumes_at(message_id)):
            # A replayed request is rendered again, and carries no outcome of its earlier attempts.
            doubt = message["possible_duplicate"] or self._ledger.in_doubt(message_id)
            message = {**message, "attempt": attempt, "possible_duplicate": doubt}
        elif cause := self._ledger.duplicate(message_id, message["attempt"]):
            return cause
        if self._admission.knows(message_id):
            return "in_flight"
        if cannot:
            return refuse(Attempt(message, record, now), "rejected", "provider_rejected", cannot)
        if owned.takeover.in_doubt(record.offset):
            IN_DOUBT.labels(self._channel).inc()
            return self._outcome(Attempt(message, record, now), CLAIMED_BY_ENDED)
        here = Attempt(message, record, now)
        queued = QueuedMessage(owned.partition, record, message, here.began, here.doubt_since)
        return self._unsendable(queued, now) or queued

    def _count(self, unusable: int = 0) -> None:
        self._brake.check(self._looked_at, unusable)
        self._looked_at = 0

    def _next(self, owned: Owned) -> None:
        self._skip_gap(owned, owned.backlog.popleft().offset)

    def _finish(self, owned: Owned, record: ConsumerRecord, iteration: Iteration) -> None:
        """Nothing is sent for this record: it is done when the turn's facts are acknowledged."""
        owned.tracker.mark_waiting(record.offset)
        owned.let_go(record)
        iteration.finished.append((owned, record.offset))

    def _dead_letter(
        self, owned: Owned, record: ConsumerRecord, reason: str, error: Exception, iteration: Iteration
    ) -> None:
        """Dead-letter the record, the backlog's first, with a status event if its ids can be read.

        No ledger entry: the record may be a bad copy of a good one.
        """
        # Raises in a flood: the record is not taken then, and neither is what follows.
        self._count(unusable=0 if is_redriven(record.headers) else 1)
        self._next(owned)
        doubt = owned.takeover.in_doubt(record.offset)
        iteration.add(
            dead_letter_records(
                record, self._channel, owned.lane, reason=reason, error=error, now=self._clock(), in_doubt=doubt
            )
        )
        self._finish(owned, record, iteration)

    def _decide(
        self, owned: Owned, record: ConsumerRecord, message_id: str, outcome: Outcome, iteration: Iteration
    ) -> None:
        """The message's outcome is known without a request."""
        iteration.add(outcome.records)
        iteration.decided.append((record, outcome))
        # At once, before its facts are acknowledged: a copy that follows in the same turn is a duplicate already.
        self._remember(message_id, outcome)
        self._finish(owned, record, iteration)

    def _remember(self, message_id: str, outcome: Outcome) -> None:
        self._ledger.record(message_id, outcome.next_attempt, outcome.settled_state, self._clock(), outcome.in_doubt)

    def _unsendable(self, queued: QueuedMessage, now: int) -> Outcome | None:
        """The outcome of a message that no account reaches, or whose accounts are all failing; None if it can wait for one."""
        message = queued.message
        attempt = Attempt(message, queued.record, now)
        accounts = self._admission.accounts
        if queued.doubt_since is not None and not accounts.cleared_by(
            message, message["provider"], queued.doubt_since, now
        ):
            return self._outcome(attempt, NO_LONGER_REPEATED)
        choice = accounts.select_account(message, (now - queued.waits_since) / 1000, repeats=queued.repeats)
        if choice is None:
            detail = f"no {message['channel']} account serves {(message['platform'] or '')[:32]} devices"
            return refuse(attempt, "rejected", "provider_rejected", detail)
        if not choice.given_up:
            return None
        return no_account_works(attempt, accounts.troubles(message))

    def _try_admit(self, owned: Owned, queued: QueuedMessage, iteration: Iteration) -> None:
        if self._admission.try_admit(queued):
            self._claim(queued, iteration)
        else:
            owned.tracker.mark_waiting(queued.record.offset)

    def _claim(self, queued: QueuedMessage, iteration: Iteration) -> None:
        self._owned[queued.partition].tracker.claim(queued.record.offset)
        iteration.claims.append(queued)

    def _sweep(self, iteration: Iteration) -> None:
        """Settle parked messages that must not be sent any more, or that no account can send."""
        now = self._clock()
        for _ in range(min(SWEPT, len(self._to_sweep))):
            if iteration.full:
                break
            queued = self._to_sweep.popleft()
            if not queued.parked:
                continue
            message, record = queued.message, queued.record
            refusal = recheck(message, self._views, now, repeats=queued.repeats)
            outcome = refuse(Attempt(message, record, now), *refusal) if refusal else self._unsendable(queued, now)
            if outcome:
                self._admission.remove(queued)
                self._decide(self._owned[queued.partition], record, message["message_id"], outcome, iteration)

    def _skip_gap(self, owned: Owned, offset: int) -> None:
        """Offsets the log no longer has (retention) can never be finished: they count as finished."""
        if 0 <= owned.next_offset < offset:
            claim = owned.tracker.current
            for missing in range(owned.next_offset, min(offset, claim.hi)):
                if not claim.finished(missing):
                    owned.tracker.finish(missing)
        owned.next_offset = offset + 1

    def _outcome(self, attempt: Attempt, result: SendResult, next_provider: str | None = None) -> Outcome:
        cleared_by = None
        if isinstance(result, InDoubt) and not result.looked_up and not attempt.message["possible_duplicate"]:
            since = attempt.doubt_since
            # Which account a sender that ended had asked is known of a repetition alone: any other may have changed places.
            known = attempt.provider or (None if since is None else attempt.message["provider"])
            since = attempt.began if since is None else since
            cleared_by = self._admission.accounts.cleared_by(attempt.message, known, since, attempt.now)
            # A look-up costs a retry, and one has to be left for the request that sends it again.
            if cleared_by and cleared_by.looks_up and attempt.message["retries"] + 2 > self._settings.max_retries:
                cleared_by = None
        return from_result(
            attempt,
            result,
            jitter=self._rng.random(),
            max_retries=self._settings.max_retries,
            next_provider=next_provider,
            cleared_by=cleared_by,
        )

    def _outcome_of(self, ended: SendCompletion) -> Outcome:
        queued = ended.queued
        if ended.refusal:
            state, reason, detail = ended.refusal
            attempt = Attempt(queued.message, queued.record, ended.at)
            return (refuse if queued.repeats else settle)(attempt, state, reason=reason, detail=detail)
        assert ended.result is not None, "a request ends in a result or was refused"
        accounts = self._admission.accounts
        provider = accounts[queued.account].sender.name
        attempt = Attempt(queued.message, queued.record, ended.at, provider, ended.latency_ms, queued.probe)
        next_provider = None if queued.repeats else accounts.next_after(queued.message, queued.account)
        # A probe costs no retry. Without this, a message that is one whenever it comes back would try for ever.
        if queued.probe and next_provider is None and is_account_failure(ended.result):
            # Of all its attempts; 0 for a message of before there was such a field.
            waited_s = (ended.at - (queued.message["routed_at"] or queued.waits_since)) / 1000
            if accounts.probed_in_vain(queued.message, waited_s, repeats=queued.repeats):
                return no_account_works(attempt, accounts.troubles(queued.message))
        return self._outcome(attempt, ended.result, next_provider)

    # -- the claim, then the sends; the facts, then the release -------------------------------------------------------

    def _record(self, iteration: Iteration) -> None:
        """One commit that claims and releases, the facts of what has ended on their way; then the sends; then the ledger."""
        facts = self._begin_facts(iteration)
        try:
            self._commit()
        except FencedError:
            # We lost the partition, but these sends happened, some of them while it was refused. Publish their outcomes: event ids
            # make copies harmless.
            self._end_facts(iteration, facts)
            last = Iteration()
            self._end_facts(last, self._begin_facts(last))
            raise
        if iteration.claims:
            crash_point("after_claim", self._context.settings.crash_at)
            self._stage.submit(iteration.claims)
        self._end_facts(iteration, facts)
        IN_FLIGHT.labels(self._channel).set(len(self._admission.in_flight))
        PARKED.labels(self._channel).set(len(self._admission.parked))

    def _collect(self) -> None:
        """Free the accounts of what has ended, before it is recorded: they would be idle for a turn each time."""
        while self._stage.done:
            ended = self._stage.done.popleft()
            self._admission.accounts[ended.queued.account].observe(ended.result, ended.began)
            self._admission.answer(ended.queued)
            self._ended.append(ended)

    def _begin_facts(self, iteration: Iteration) -> _Facts:
        """Make the facts of what ended and what was decided, and begin to publish them."""
        self._collect()
        ended, self._ended = self._ended, []
        outcomes = [(it.queued.record, self._outcome_of(it)) for it in ended]
        crash_point("before_facts", self._context.settings.crash_at if ended else None)
        records = [*iteration.records, *(record for _, outcome in outcomes for record in outcome.records)]
        publishing = None
        if not any(record.topic == DEAD_LETTERS for record in records):
            publishing = self._producer.start(records)
        return _Facts(ended, [*iteration.decided, *outcomes], records, publishing)

    def _end_facts(self, iteration: Iteration, facts: _Facts) -> None:
        """Wait until they are acknowledged, then record them in the ledger; the next commit releases their messages."""
        ended = facts.ended
        recorded = self._publish_records(facts.records, facts.made, facts.publishing)
        # Never together: partitions acknowledge one by one, and a message that is in the ledger counts as settled, whether its
        # status and its timer were acknowledged or not.
        crash_point("before_ledger", self._context.settings.crash_at if ended else None)
        self._producer.publish([outcome.ledger_record for _, outcome in recorded])
        crash_point("after_facts", self._context.settings.crash_at if ended else None)
        self._recorded = len(ended)
        for it, (record, outcome) in zip(ended, recorded[len(iteration.decided) :], strict=True):
            queued = it.queued
            self._remember(queued.message["message_id"], outcome)
            owned = self._owned[queued.partition]
            owned.tracker.finish(record.offset)
            owned.let_go(record)
            self._admission.release(queued)
        for owned, offset in iteration.finished:
            owned.tracker.claim(offset)
            owned.tracker.finish(offset)
        if ended or iteration.finished:
            self._ledgers.flush()

    def _publish_records(
        self, records: Sequence[ProducerRecord], made: Sequence[_Made], publishing: Publishing | None = None
    ) -> Sequence[_Made]:
        """Dead letters first, cut if Kafka refuses them for their size: it would refuse them again after every restart.

        `publishing`: there are no dead letters, and the records are on their way already. `made` are the outcomes that `records`
        belong to; returns them as they are now: one whose next attempt Kafka refuses, since an operator lowered that topic's
        limit, has failed. Raises TooLargeError for a status.
        """
        publish_dead_letters(self._producer.publish, [record for record in records if record.topic == DEAD_LETTERS])
        try:
            if publishing is None:
                publishing = self._producer.start([record for record in records if record.topic != DEAD_LETTERS])
            publishing.wait()
        except TooLargeError as exc:
            if any(record.topic == STATUS for record in exc.records):
                raise
            refused = set(map(id, exc.records))
            return [it if refused.isdisjoint(map(id, it[1].records)) else self._without_next(it, exc) for it in made]
        return made

    def _without_next(self, made: _Made, error: TooLargeError) -> _Made:
        """The record, and the outcome in place of one whose next attempt Kafka refuses; its facts are published."""
        record, outcome = made
        message = read_message(record)
        failed = no_next_attempt(Attempt(message, record, self._clock()), error, in_doubt=outcome.in_doubt)
        self._publish_records(failed.records, ())
        self._remember(message["message_id"], failed)
        return record, failed

    def _commit(self) -> None:
        changed = {o.partition: o.tracker.current for o in self._owned.values() if o.tracker.changed}
        if not changed:
            return
        started = self._monotonic()
        while True:
            try:
                self._consumer.commit(
                    {partition: claim.lo for partition, claim in changed.items()},
                    {partition: claim.metadata for partition, claim in changed.items()},
                )
                break
            except CommitError as exc:
                # The same commit again is harmless: it says the same, and the fence still holds.
                if self._monotonic() - started > COMMIT_TIMEOUT_S:
                    self._context.exit_now(f"the claim could not be committed: {exc}")
                log.warning("commit not confirmed, trying again", error=str(exc))
                self._stage.wait(0.1)
        for partition, claim in changed.items():
            self._owned[partition].tracker.committed(claim)
        COMMIT_SECONDS.observe(self._monotonic() - started)

    # -- the ledger's upkeep ------------------------------------------------------------------------------------------

    def _maintain_ledger(self) -> None:
        now = self._monotonic()
        if now - self._positions_saved >= SAVE_POSITIONS_S:
            self._positions_saved = now
            self._save_positions()
        if now - self._pruned >= PRUNE_S:
            self._pruned = now
            self._ledger.forget_before(self._clock() - ledger_ms())

    def _save_positions(self) -> None:
        """Every entry of our partitions is recorded here by now, on this thread: the next start may read on from their ends.

        All it saves is reading them again, so a broker that is slow now is asked another time.
        """
        try:
            self._ledgers.advance(
                [self._ledgers.partition(owned.partition, owned.lane) for owned in self._owned.values()]
            )
        except UnavailableError as exc:
            log.warning("the ledger's positions are not kept this time", error=str(exc))
