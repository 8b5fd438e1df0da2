"""The one loop of every channel and provider: the claim, then the sends; the facts, then the release.

    new dispatch records ───────────► 1. one commit per partition: claims them, and releases what the last turn recorded
                                      2. only now the newly claimed messages are sent, concurrently
    outcomes of finished messages ──► 3. status and timers, acknowledged; then the ledger, acknowledged

A new message so waits for one commit, not for the facts of those before it. The commit is fenced by the consumer group: an
owner that was replaced learns it there, before it sends, and exits. Every Kafka call is made on one thread; sends run on the
event loop. Any doubt ends the process: the next owner finds the claim in the committed metadata and the ledger, and sends
again only what is in doubt, flagged.
May import runtime. What never enters here: a provider's name, a channel's payload.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from runtime.clock import Clock, system_clock
from runtime.dead_letters import UNDECODABLE, Brake, dead_letter
from runtime.errors import DeadLetterFlood
from runtime.kafka import BEGINNING, CommitError, Consumer, FencedError, Partition, Producer
from runtime.logs import get_logger
from runtime.metrics import COMMIT_SECONDS, DUPLICATES_DROPPED, IN_DOUBT, IN_FLIGHT, PARKED
from runtime.process import Context, crash_point, exit_now
from runtime.records import InRecord, OutRecord
from schemas.codec import DecodeError, codec
from schemas.events import LANES, ChannelMessage
from schemas.topics import dispatch_topic
from senders.admission import Admission, Entry
from senders.claims import Claim, Window, parse_claim
from senders.ledger import KEPT_S, MAX_POLL_INTERVAL_MS, Ledger, LedgerReader
from senders.outcomes import CLAIMED_BY_ENDED, Outcome, from_result, no_account_works, settle
from senders.recheck import SenderViews, recheck
from senders.sender import SendResult
from senders.stage import Ended, SendStage

log = get_logger("sender")

COMMIT_PATIENCE_S = 45.0
"""How long a commit is tried again while the broker is away; the group's fence decides whether it still counts."""
BACKLOG = 8_000
"""Records read ahead per partition; fetching pauses above it and resumes at half."""
MAX_FACTS = 2_000
"""Facts of one turn: what is decided without a request must not hold up what is being sent."""
SWEEP_S = 1.0
"""How often parked messages are looked at: they expire and are cancelled while they wait."""
SWEPT = 200
"""Of them in one turn: 12,000 at once held a turn up by 200 ms, and everybody with it."""
KEEP_POSITIONS_S = 300.0


@dataclass(slots=True)
class Owned:
    """What the owner of one dispatch partition knows."""

    partition: Partition
    lane: str
    window: Window
    takeover: Claim
    backlog: deque[InRecord] = field(default_factory=deque)
    next_offset: int = -1
    paused: bool = False


@dataclass(slots=True)
class Turn:
    """What one turn records and claims."""

    facts: list[OutRecord] = field(default_factory=list)
    entries: list[OutRecord] = field(default_factory=list)
    """The ledger's."""
    finished: list[tuple[Owned, int]] = field(default_factory=list)
    """Offsets decided without a request: passed over until their facts are acknowledged, so that they are never in doubt."""
    claims: list[Entry] = field(default_factory=list)


class Worker:
    """The Kafka side: owns partitions of a channel's dispatch topics; every method on one thread."""

    def __init__(
        self, context: Context, channel: str, lanes: Sequence[str], stage: SendStage, admission: Admission,
        views: SenderViews, ledger: Ledger, producer: Producer, rng: random.Random, clock: Clock = system_clock,
    ) -> None:  # fmt: skip
        self._context, self._channel, self._stage, self._admission = context, channel, stage, admission
        self._views, self._ledger, self._producer, self._rng, self._clock = views, ledger, producer, rng, clock
        self._settings = context.settings.sender
        self._lanes = {dispatch_topic(channel, lane): lane for lane in lanes}
        self._owned: dict[Partition, Owned] = {}
        self._last_turn = self._last_sweep = 0.0
        self._to_sweep: deque[Entry] = deque()
        self._positions_kept = self._pruned = time.monotonic()
        self.assigned = False
        self._brake, self._looked_at = Brake(context.settings.dead_letters, "sender"), 0
        context.health.require("dead letters", self._brake.not_ready)
        kafka = context.settings.kafka
        # One group whatever the lanes: two groups over one topic would send everything twice.
        self.group = f"heliograph-sender-{channel}"
        self._consumer = Consumer(
            kafka, client_id=f"sender-{channel}", group=self.group, max_poll_interval_ms=MAX_POLL_INTERVAL_MS
        )
        self._ledgers = LedgerReader(kafka, channel, ledger, producer.publish, clock)

    def run(self) -> None:
        """Send until the context stops, then let in-flight messages end and record them."""
        self._consumer.subscribe(
            list(self._lanes), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        try:
            while not self._context.stopping.is_set():
                busy = self._admission.in_flight or any(o.backlog or o.window.changed for o in self._owned.values())
                wait_s = self._settings.commit_interval_ms / 1000 if busy or self._admission.parked else 0.25
                self._take(self._consumer.consume(2_000, wait_s))
                self._turn()
                self._keep_house()
            self._drain()
            self._keep_positions()
        except FencedError as exc:
            exit_now(f"no longer the owner: {exc}")
        self._consumer.close()
        self._ledgers.close()

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
                partition, self._lanes[partition[0]], Window(claim), claim, next_offset=claim.lo if offset >= 0 else -1
            )
            starts[partition] = claim.lo if offset >= 0 else BEGINNING
        self._take_share()
        self.assigned = True
        log.info("took over", partitions=len(partitions), ledger_entries=len(self._ledger))
        return starts

    def _take_share(self) -> None:
        """Every lane counts, whoever serves it, so that all processes together never exceed an account's limits."""
        total = sum(len(self._consumer.partitions_of(dispatch_topic(self._channel, lane))) for lane in LANES)
        self._admission.accounts.take_share(len(self._owned) / total)

    def _on_revoke(self, _: list[Partition]) -> None:
        self._drain()
        self._forget()

    def _on_lost(self, partitions: list[Partition]) -> None:
        if self._admission.in_flight:
            exit_now("the group gave our partitions away while messages were in flight")
        self._forget()

    def _forget(self) -> None:
        self._admission.clear_parked()
        self._to_sweep.clear()
        self._owned.clear()

    def _drain(self) -> None:
        """Claim nothing more, wait for what is in flight, record and release it."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        while self._admission.in_flight and time.monotonic() < deadline:
            self._stage.wait(0.05)
            self._record(Turn())
        if self._admission.in_flight:
            exit_now(f"{len(self._admission.in_flight)} messages did not end in time; they stay claimed and in doubt")
        self._record(Turn())

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _take(self, records: Sequence[InRecord]) -> None:
        for record in records:
            owned = self._owned.get((record.topic, record.partition))
            if owned is not None:
                owned.backlog.append(record)
        too_long = [o.partition for o in self._owned.values() if not o.paused and len(o.backlog) > BACKLOG]
        short = [o.partition for o in self._owned.values() if o.paused and len(o.backlog) < BACKLOG // 2]
        for partition in (*too_long, *short):
            self._owned[partition].paused = partition in too_long
        if too_long:
            self._consumer.pause(too_long)
        if short:
            self._consumer.resume(short)

    def _turn(self) -> None:
        now = time.monotonic()
        if now - self._last_turn < self._settings.commit_interval_ms / 1000:
            return
        self._last_turn = now
        turn = Turn()
        if self._brake.not_ready():
            self._record(turn)
            return
        if now - self._last_sweep >= SWEEP_S and not self._to_sweep:
            self._last_sweep = now
            self._admission.accounts.report()
            self._to_sweep.extend(self._admission.parked)
        self._sweep(turn)
        for lane in LANES:
            for entry in self._admission.wake(lane):
                self._claim(entry, turn)
            mine = [owned for owned in self._owned.values() if owned.lane == lane and owned.backlog]
            # Round robin over the partitions, so that a long one does not starve its neighbours.
            try:
                while mine and len(turn.facts) < MAX_FACTS:
                    mine = [owned for owned in mine if self._take_next(owned, turn)]
            except DeadLetterFlood as exc:
                log.critical("held", reason=str(exc))
                self._consumer.pause(list(self._owned))
                break
        self._record(turn)

    def _take_next(self, owned: Owned, turn: Turn) -> bool:
        """Take one record of a partition; False when it has no more to give this turn."""
        if not owned.backlog or not owned.window.room(owned.backlog[0].offset):
            return False
        if not self._admission.has_room(owned.lane) or not self._admission.may_look_ahead(owned.lane):
            return False
        record = owned.backlog[0]
        if owned.takeover.finished(record.offset):
            self._next(owned)
            return True
        self._looked_at += 1
        try:
            message = cast(ChannelMessage, codec("ChannelMessage").decode(record.value))
            UUID(message["message_id"])
            UUID(message["notification_id"])
            if (message["channel"], message["lane"]) != (self._channel, owned.lane):
                raise DecodeError("channel or lane is not the topic's")
        except (DecodeError, ValueError) as exc:
            self._count(unusable=1)  # raises in a flood: the record is not taken then, and neither is what follows
            self._next(owned)
            turn.facts.append(dead_letter(record, stage="sender", reason=UNDECODABLE, error=exc, now=self._clock()))
            self._finish(owned, record, turn)
            return True
        self._next(owned)
        if self._looked_at >= MAX_FACTS:
            self._count()
        if message["replay"] and (attempt := self._ledger.resumes_at(message["message_id"])):
            message = {**message, "attempt": attempt}
            cause = None
        else:
            cause = self._ledger.duplicate(message["message_id"], message["attempt"])
        if cause is None and self._admission.knows(message["message_id"]):
            cause = "in_flight"
        if cause is not None:
            DUPLICATES_DROPPED.labels(self._channel, cause).inc()
            self._finish(owned, record, turn)
        elif owned.takeover.in_doubt(record.offset):
            IN_DOUBT.labels(self._channel).inc()
            self._decide(owned, record, message, self._outcome(message, record, CLAIMED_BY_ENDED), turn)
        elif outcome := self._hopeless(message, record):
            self._decide(owned, record, message, outcome, turn)
        else:
            self._offer(owned, Entry(owned.partition, record, message), turn)
        return True

    def _count(self, unusable: int = 0) -> None:
        self._brake.check(self._looked_at, unusable)
        self._looked_at = 0

    def _next(self, owned: Owned) -> None:
        self._skip_gap(owned, owned.backlog.popleft().offset)

    def _finish(self, owned: Owned, record: InRecord, turn: Turn) -> None:
        """Nothing is sent for this record: it is done when the turn's facts are acknowledged."""
        owned.window.pass_over(record.offset)
        turn.finished.append((owned, record.offset))

    def _decide(self, owned: Owned, record: InRecord, message: ChannelMessage, outcome: Outcome, turn: Turn) -> None:
        """The message's outcome is known without a request."""
        turn.facts += outcome.facts
        turn.entries.append(outcome.entry)
        # At once, before its facts are acknowledged: a copy that follows in the same turn is a duplicate already.
        self._ledger.record(message["message_id"], outcome.next_attempt, outcome.settled_state, self._clock())
        self._finish(owned, record, turn)

    def _hopeless(self, message: ChannelMessage, record: InRecord) -> Outcome | None:
        """What becomes of a message that no account reaches, or none that works; None when there is one to wait for."""
        choice = self._admission.accounts.choose(message)
        if choice is None:
            detail = f"no {message['channel']} account serves {(message['platform'] or '')[:32]} devices"
            return settle(message, record, "rejected", now=self._clock(), reason="provider_rejected", detail=detail)
        return no_account_works(message, record, now=self._clock()) if choice.given_up else None

    def _offer(self, owned: Owned, entry: Entry, turn: Turn) -> None:
        if self._admission.offer(entry):
            self._claim(entry, turn)
        else:
            owned.window.pass_over(entry.record.offset)

    def _claim(self, entry: Entry, turn: Turn) -> None:
        self._owned[entry.partition].window.claim(entry.record.offset)
        turn.claims.append(entry)

    def _sweep(self, turn: Turn) -> None:
        """Settle parked messages that must not be sent any more, or that nobody can send."""
        now = self._clock()
        for _ in range(min(SWEPT, len(self._to_sweep))):
            if len(turn.facts) >= MAX_FACTS:
                break
            entry = self._to_sweep.popleft()
            if not entry.parked:
                continue
            message, record = entry.message, entry.record
            refusal = recheck(message, self._views, now)
            outcome = settle(message, record, refusal[0], now=now, reason=refusal[1]) if refusal else None
            outcome = outcome or self._hopeless(message, record)
            if outcome:
                self._admission.remove(entry)
                self._decide(self._owned[entry.partition], record, message, outcome, turn)

    def _skip_gap(self, owned: Owned, offset: int) -> None:
        """Offsets the log no longer has (retention) can never be finished by anybody: they count as finished."""
        if 0 <= owned.next_offset < offset:
            claim = owned.window.current
            for missing in range(owned.next_offset, min(offset, claim.hi)):
                if not claim.finished(missing):
                    owned.window.finish(missing)
        owned.next_offset = offset + 1

    def _outcome(
        self, message: ChannelMessage, record: InRecord, result: SendResult, ended: Ended | None = None
    ) -> Outcome:
        account = ended.entry.account if ended else -1
        accounts = self._admission.accounts
        return from_result(
            message, record, result, provider=accounts[account].sender.name if ended else None,
            latency_ms=ended.latency_ms if ended else None, now=ended.at if ended else self._clock(),
            jitter=self._rng.random(), max_retries=self._settings.max_retries,
            next_provider=accounts.next_after(message, account) if ended else None,
        )  # fmt: skip

    def _outcome_of(self, ended: Ended) -> Outcome:
        message, record = ended.entry.message, ended.entry.record
        if ended.refusal:
            state, reason, detail = ended.refusal
            return settle(message, record, state, now=ended.at, reason=reason, detail=detail)
        assert ended.result is not None, "a request ends in a result or was refused"
        return self._outcome(message, record, ended.result, ended)

    # -- the claim, then the sends; the facts, then the release -------------------------------------------------------

    def _record(self, turn: Turn) -> None:
        """One commit that claims and releases; then the sends; then the facts of what has ended, acknowledged."""
        try:
            self._commit()
        except FencedError:
            # Sent is sent, whoever owns the partition now.
            self._tell(turn)
            raise
        if turn.claims:
            crash_point("after_claim", self._context.settings.crash_at)
            self._stage.submit(turn.claims)
        self._tell(turn)
        IN_FLIGHT.labels(self._channel).set(len(self._admission.in_flight))
        PARKED.labels(self._channel).set(len(self._admission.parked))

    def _tell(self, turn: Turn) -> None:
        """Publish what ended and what was decided; the next commit releases it."""
        ended = []
        while self._stage.done:
            ended.append(self._stage.done.popleft())
        for it in ended:
            self._admission.accounts[it.entry.account].observe(it.result, it.began)
        outcomes = [(it, self._outcome_of(it)) for it in ended]
        crash_point("before_facts", self._context.settings.crash_at if ended else None)
        self._producer.publish([*turn.facts, *(fact for _, outcome in outcomes for fact in outcome.facts)])
        # Never together: partitions acknowledge one by one, and a message that the ledger knows is settled for everybody,
        # whether its status and its timer got through or not.
        crash_point("before_ledger", self._context.settings.crash_at if ended else None)
        self._producer.publish([*turn.entries, *(outcome.entry for _, outcome in outcomes)])
        crash_point("after_facts", self._context.settings.crash_at if ended else None)
        now = self._clock()
        for it, outcome in outcomes:
            entry = it.entry
            self._ledger.record(entry.message["message_id"], outcome.next_attempt, outcome.settled_state, now)
            self._owned[entry.partition].window.finish(entry.record.offset)
            self._admission.release(entry)
        for owned, offset in turn.finished:
            owned.window.claim(offset)
            owned.window.finish(offset)
        if outcomes or turn.finished:
            self._ledgers.flush()

    def _commit(self) -> None:
        changed = {o.partition: o.window.current for o in self._owned.values() if o.window.changed}
        if not changed:
            return
        started = time.monotonic()
        while True:
            try:
                self._consumer.commit(
                    {partition: claim.lo for partition, claim in changed.items()},
                    {partition: claim.metadata for partition, claim in changed.items()},
                )
                break
            except CommitError as exc:
                # The same commit again is harmless: it says the same, and the fence still holds.
                if time.monotonic() - started > COMMIT_PATIENCE_S:
                    exit_now(f"the claim could not be committed: {exc}")
                log.warning("commit not confirmed, trying again", error=str(exc))
                self._stage.wait(0.1)
        for partition, claim in changed.items():
            self._owned[partition].window.committed(claim)
        COMMIT_SECONDS.observe(time.monotonic() - started)

    # -- the ledger's upkeep ------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        now = time.monotonic()
        if now - self._positions_kept >= KEEP_POSITIONS_S:
            self._positions_kept = now
            self._keep_positions()
        if now - self._pruned >= 3_600:
            self._pruned = now
            self._ledger.forget_before(self._clock() - KEPT_S * 1000)

    def _keep_positions(self) -> None:
        """Every entry of our partitions is recorded here by now, on this thread: the next start may read on from their ends."""
        self._ledgers.advance([self._ledgers.partition(owned.partition, owned.lane) for owned in self._owned.values()])
