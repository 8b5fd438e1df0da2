"""The one loop of every channel and provider: facts, then the claim, then the sends.

    outcomes of finished messages ──► 1. status, ledger, timers: produced and acknowledged
    new dispatch records ───────────► 2. one commit per partition: releases what is recorded, claims what comes next
                                      3. only now the newly claimed messages are sent, concurrently

The commit is fenced by the consumer group: an owner that was replaced learns it there, before it sends, and exits. Every
Kafka call is made on one thread; sends run on the event loop. Any doubt ends the process: the next owner finds the claim
in the committed metadata and the ledger, and sends again only what is in doubt, flagged.
May import runtime. What never enters here: a provider's name, a channel's payload.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from runtime.clock import Clock, system_clock
from runtime.dead_letters import UNDECODABLE, dead_letter
from runtime.kafka import BEGINNING, CommitError, Consumer, FencedError, Partition, Producer
from runtime.logs import get_logger
from runtime.metrics import (
    COMMIT_SECONDS,
    DUPLICATES_DROPPED,
    IN_DOUBT,
    IN_FLIGHT,
    PROVIDER_SECONDS,
    REQUEST_GUARD,
    SENDS,
    STAGE_DELAY_SECONDS,
)
from runtime.process import Context, crash_point, exit_now
from runtime.records import InRecord, OutRecord
from schemas.codec import DecodeError, codec
from schemas.events import LANES, ChannelMessage
from schemas.topics import dispatch_topic, ledger_topic
from senders.claims import Claim, Window, parse_claim
from senders.failover import account_for, accounts_for
from senders.ledger import Ledger, LedgerReader
from senders.limits import AccountLimits
from senders.outcomes import MAX_ATTEMPTS, Outcome, from_result, resend_in_doubt, settle
from senders.recheck import SenderViews, recheck
from senders.sender import InDoubt, Sender, SendResult

log = get_logger("sender")

LEASE_S = 5.0
"""A process that stood still for half a session may have a successor already: it exits instead of sending."""
COMMIT_PATIENCE_S = 45.0
"""How long a commit is tried again while the broker is away; the group's fence decides whether it still counts."""
BACKLOG = 8_000
"""Records read ahead per partition; fetching pauses above it and resumes at half."""
# Share of the window a lane may fill: a blast on bulk always leaves room for the others.
LANE_SHARE = {"critical": 1.0, "normal": 0.75, "bulk": 0.5}


@dataclass(slots=True)
class Owned:
    """What the owner of one dispatch partition knows."""

    partition: Partition
    lane: str
    window: Window
    takeover: Claim
    ledger: Ledger
    backlog: deque[InRecord] = field(default_factory=deque)
    next_offset: int = -1
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Claimed:
    """A message this process may send once."""

    partition: Partition
    record: InRecord
    message: ChannelMessage


class SendStage:
    """The event-loop side: sends what is claimed and hands outcomes back. `done` is read by the Kafka thread."""

    def __init__(
        self, context: Context, senders: Sequence[Sender], views: SenderViews, clock: Clock, rng: random.Random
    ) -> None:
        self.done: deque[tuple[Claimed, Outcome]] = deque()
        self._ended = threading.Event()
        self._settings, self._crash_at = context.settings.sender, context.settings.crash_at
        self._senders, self._views, self._clock, self._rng = senders, views, clock, rng
        self._limits = [AccountLimits(sender.max_in_flight, sender.rate_per_second) for sender in senders]
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests: dict[str, int] = {}
        self._ticked = time.monotonic()
        self._ticker = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            self._ticked = time.monotonic()
            await asyncio.sleep(0.25)

    def submit(self, claims: Sequence[Claimed]) -> None:
        """Send; called from the Kafka thread after the claim was committed."""
        self._loop.call_soon_threadsafe(self._start, claims)

    def _start(self, claims: Sequence[Claimed]) -> None:
        for claim in claims:
            task = self._loop.create_task(self._run(claim))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, claim: Claimed) -> None:
        try:
            outcome = await self._send(claim)
        except Exception:
            log.exception("send failed", notification_id=claim.message["notification_id"])
            exit_now("an error the sender does not know; the message stays claimed and in doubt")
        self.done.append((claim, outcome))
        self._ended.set()

    def wait(self, timeout_s: float) -> None:
        """Block the Kafka thread until a message has ended, `timeout_s` at most."""
        self._ended.wait(timeout_s)
        self._ended.clear()

    async def _send(self, claim: Claimed) -> Outcome:
        message, record = claim.message, claim.record
        if message["possible_duplicate"] and message["delivery"] == "at_most_once":
            return settle(message, record, "unknown", now=self._clock(), reason="in_doubt")
        accounts = accounts_for(message, self._senders)
        if not accounts:
            detail = f"no {message['channel']} account serves {(message['platform'] or '')[:32]} devices"
            return settle(message, record, "rejected", now=self._clock(), reason="provider_rejected", detail=detail)
        index = account_for(message["attempt"], accounts)
        sender = self._senders[index]
        async with self._limits[index]:
            now = self._clock()
            if refusal := recheck(message, self._views, now):
                return settle(message, record, refusal[0], now=now, reason=refusal[1])
            if time.monotonic() - self._ticked > LEASE_S:
                exit_now("the process stood still for too long to be sure that it still owns its messages")
            if not self._guard(message):
                return settle(message, record, "failed", now=now, reason="retries_exhausted", detail="request guard")
            STAGE_DELAY_SECONDS.labels("sender", message["lane"]).observe(max(0, now - message["accepted_at"]) / 1000)
            started = time.perf_counter()
            result = await sender.send(message)
            elapsed = time.perf_counter() - started
        crash_point("after_provider_accept", self._crash_at)
        PROVIDER_SECONDS.labels(message["channel"], sender.name).observe(elapsed)
        SENDS.labels(message["channel"], sender.name, _outcome_label(result)).inc()
        return from_result(
            message, record, result, provider=sender.name, latency_ms=int(elapsed * 1000), now=self._clock(),
            jitter=self._rng.random(), max_retries=self._settings.max_retries,
        )  # fmt: skip

    def _guard(self, message: ChannelMessage) -> bool:
        """Below all retry logic: whatever goes wrong above, one message costs a bounded number of requests."""
        count = self._requests.get(message["message_id"], 0) + 1
        if count > MAX_ATTEMPTS or message["attempt"] > MAX_ATTEMPTS:
            REQUEST_GUARD.labels(message["channel"]).inc()
            log.critical("request guard", message_id=message["message_id"], requests=count)
            return False
        self._requests[message["message_id"]] = count
        if len(self._requests) > 100_000:
            self._requests.pop(next(iter(self._requests)))
        return True

    async def close(self) -> None:
        self._ticker.cancel()


def _outcome_label(result: SendResult) -> str:
    return "in_doubt" if isinstance(result, InDoubt) else type(result).__name__.lower()


class Worker:
    """The Kafka side: owns partitions of a channel's dispatch topics; every method on one thread."""

    def __init__(
        self, context: Context, channel: str, lanes: Sequence[str], stage: SendStage, producer: Producer,
        clock: Clock = system_clock,
    ) -> None:  # fmt: skip
        self._context, self._channel, self._stage, self._producer, self._clock = (
            context,
            channel,
            stage,
            producer,
            clock,
        )
        self._settings = context.settings.sender
        self._lanes = {dispatch_topic(channel, lane): lane for lane in lanes}
        self._owned: dict[Partition, Owned] = {}
        self._in_flight: dict[str, str] = {}  # message id → lane
        self._in_flight_by_lane = dict.fromkeys(LANES, 0)
        self._last_turn = 0.0
        self.assigned = False
        kafka = context.settings.kafka
        # One group whatever the lanes: two groups over one topic would send everything twice.
        self.group = f"heliograph-sender-{channel}"
        self._consumer = Consumer(kafka, client_id=f"sender-{channel}", group=self.group)
        self._ledgers = LedgerReader(kafka, channel, producer.publish, clock)

    def run(self) -> None:
        """Send until the context stops, then let in-flight messages end and record them."""
        self._consumer.subscribe(
            list(self._lanes), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        try:
            while not self._context.stopping.is_set():
                busy = self._in_flight or any(owned.backlog for owned in self._owned.values())
                wait_s = self._settings.commit_interval_ms / 1000 if busy else 0.25
                self._take(self._consumer.consume(2_000, wait_s))
                self._turn()
            self._drain()
        except FencedError as exc:
            exit_now(f"no longer the owner: {exc}")
        self._consumer.close()
        self._ledgers.close()

    # -- ownership --------------------------------------------------------------------------------------------------

    def _on_assign(self, partitions: list[Partition]) -> dict[Partition, int]:
        """Take over: committed offset and metadata first, then the ledger to its end, then work."""
        committed = self._consumer.committed(partitions)
        ledger_of = {(t, p): (ledger_topic(self._channel, self._lanes[t]), p) for t, p in partitions}
        ledgers = self._ledgers.read(list(ledger_of.values()))
        starts = {}
        for partition in partitions:
            offset, metadata = committed[partition]
            claim = parse_claim(offset, metadata) if offset >= 0 else Claim(0, 0)
            self._owned[partition] = Owned(
                partition, self._lanes[partition[0]], Window(claim), claim, ledgers[ledger_of[partition]],
                next_offset=claim.lo if offset >= 0 else -1,
            )  # fmt: skip
            starts[partition] = claim.lo if offset >= 0 else BEGINNING
        self.assigned = True
        log.info(
            "took over", partitions=len(partitions), ledger_entries=sum(len(ledger) for ledger in ledgers.values())
        )
        return starts

    def _on_revoke(self, _: list[Partition]) -> None:
        self._drain()
        self._owned.clear()

    def _on_lost(self, partitions: list[Partition]) -> None:
        if self._in_flight:
            exit_now("the group gave our partitions away while messages were in flight")
        self._owned.clear()

    def _drain(self) -> None:
        """Claim nothing more, wait for what is in flight, record and release it."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        while self._in_flight and time.monotonic() < deadline:
            self._stage.wait(0.05)
            self._record(claims=[])
        if self._in_flight:
            exit_now(f"{len(self._in_flight)} messages did not end in time; they stay claimed and in doubt")
        self._record(claims=[])

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
        claims: list[Claimed] = []
        facts: list[OutRecord] = []
        for lane in LANES:
            room = int(self._settings.window * LANE_SHARE[lane])
            mine = [owned for owned in self._owned.values() if owned.lane == lane and owned.backlog]
            # Round robin over the partitions, so that a long one does not starve its neighbours.
            while mine and self._may_claim(lane, room):
                mine = [owned for owned in mine if self._claim_next(owned, claims, facts)]
                if sum(len(owned.backlog) for owned in mine) == 0 or len(facts) > 2_000:
                    break
        self._record(claims, facts)

    def _may_claim(self, lane: str, room: int) -> bool:
        return len(self._in_flight) < self._settings.window and self._in_flight_by_lane[lane] < room

    def _claim_next(self, owned: Owned, claims: list[Claimed], facts: list[OutRecord]) -> bool:
        """Take one record of a partition; False when it has no more to give this turn."""
        if not owned.backlog or not owned.window.room(owned.backlog[0].offset):
            return False
        if not self._may_claim(owned.lane, int(self._settings.window * LANE_SHARE[owned.lane])):
            return False
        record = owned.backlog.popleft()
        self._skip_gap(owned, record.offset)
        if owned.takeover.finished(record.offset):
            return True
        owned.window.claim(record.offset)
        try:
            message = cast(ChannelMessage, codec("ChannelMessage").decode(record.value))
            UUID(message["message_id"])
            UUID(message["notification_id"])
            if (message["channel"], message["lane"]) != (self._channel, owned.lane):
                raise DecodeError("channel or lane is not the topic's")
        except (DecodeError, ValueError) as exc:
            facts.append(dead_letter(record, stage="sender", reason=UNDECODABLE, error=exc, now=self._clock()))
            owned.window.finish(record.offset)
            return True
        cause = owned.ledger.duplicate(message["message_id"], message["attempt"])
        if cause is None and message["message_id"] in self._in_flight:
            cause = "in_flight"
        if cause is not None:
            DUPLICATES_DROPPED.labels(self._channel, cause).inc()
            owned.window.finish(record.offset)
            return True
        if owned.takeover.in_doubt(record.offset):
            IN_DOUBT.labels(self._channel).inc()
            message, fact = resend_in_doubt(message, record, self._clock())
            facts.append(fact)
        self._in_flight[message["message_id"]] = owned.lane
        self._in_flight_by_lane[owned.lane] += 1
        claims.append(Claimed(owned.partition, record, message))
        return True

    def _skip_gap(self, owned: Owned, offset: int) -> None:
        """Offsets the log no longer has (retention) can never be finished by anybody: they count as finished."""
        if 0 <= owned.next_offset < offset:
            claim = owned.window.current
            for missing in range(owned.next_offset, min(offset, claim.hi)):
                if not claim.finished(missing):
                    owned.window.finish(missing)
        owned.next_offset = offset + 1

    def _record(self, claims: Sequence[Claimed], facts: Sequence[OutRecord] = ()) -> None:
        """Facts, acknowledged; then one commit that releases and claims; then the sends."""
        outcomes = []
        while self._stage.done:
            outcomes.append(self._stage.done.popleft())
        all_facts = list(facts)
        for _, outcome in outcomes:
            all_facts += outcome.facts
        started = time.perf_counter()
        self._producer.publish(all_facts)
        crash_point("after_facts", self._context.settings.crash_at)
        for claim, outcome in outcomes:
            owned = self._owned[claim.partition]
            message_id = claim.message["message_id"]
            owned.ledger.record(message_id, outcome.next_attempt, outcome.settled)
            owned.window.finish(claim.record.offset)
            self._in_flight_by_lane[self._in_flight.pop(message_id)] -= 1
        self._commit()
        if outcomes or claims:
            COMMIT_SECONDS.observe(time.perf_counter() - started)
            IN_FLIGHT.labels(self._channel).set(len(self._in_flight))
        if claims:
            crash_point("after_claim", self._context.settings.crash_at)
            self._stage.submit(claims)

    def _commit(self) -> None:
        changed = {o.partition: o.window.current for o in self._owned.values() if o.window.changed}
        if not changed:
            return
        deadline = time.monotonic() + COMMIT_PATIENCE_S
        while True:
            try:
                self._consumer.commit(
                    {partition: claim.lo for partition, claim in changed.items()},
                    {partition: claim.metadata for partition, claim in changed.items()},
                )
                break
            except CommitError as exc:
                # The same commit again is harmless: it says the same, and the fence still holds.
                if time.monotonic() > deadline:
                    exit_now(f"the claim could not be committed: {exc}")
                log.warning("commit not confirmed, trying again", error=str(exc))
                self._stage.wait(0.1)
        for partition, claim in changed.items():
            self._owned[partition].window.committed(claim)
