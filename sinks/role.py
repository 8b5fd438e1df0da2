"""The sink role: Kafka → ClickHouse, at least once into storage that makes it exactly once.

    consume ──► batch ──► rows inserted ──► dead letters published ──► offsets committed

The commit comes last: after a crash records are read again, and copies are dropped by their identity.

    | event                                           | the records                                                     |
    |-------------------------------------------------|-----------------------------------------------------------------|
    | one does not decode, or its id is no UUIDv7     | a dead letter, acknowledged before the commit; others are stored|
    | ClickHouse cannot read a chunk of the batch     | the chunk is decoded here, to find the record; as above         |
    | an undecodable one is itself a dead letter      | counted, logged, skipped: its own dead letter would return here |
    | too many do not decode                          | rows are stored, nothing is committed; `/readyz` says why       |
    | ClickHouse is unavailable or refuses            | kept, retried every 0.1 to 5 s; polling continues, and a full   |
    |                                                 | batch pauses the partitions, so that the group keeps us         |
    | the same at the start, for 10 s                 | none was read; the process ends with the reason                 |
    | Kafka takes no dead letter or no commit         | rows are stored; only the missing step is retried               |
    | the process is killed at any line               | read again from the last commit, by us or the next owner        |
    | partitions are revoked                          | stored and committed within 1 s, else read by the next owner    |
    | they are revoked while a flush waits            | dropped here, read by the next owner                            |
    | the commit is fenced: another owns them         | dropped here, read by it; 21 in a row end the process           |
    | positions cannot be read at a takeover          | none was read; the process exits                                |
    | SIGTERM                                         | retried for 8 s, then read again at the next start              |

All Kafka and ClickHouse calls of the loop are made on one thread.
May import runtime. Never: a column, a decision about a notification.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from clickhouse_connect.driver.client import Client

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import INTERNAL_ERROR, UNDECODABLE, DeadLetterBrake, dead_letter_record, publish_dead_letters
from runtime.errors import DeadLetterFlood, HeliographError, UnavailableError
from runtime.health import Reason
from runtime.kafka.client import Partition
from runtime.kafka.consumer import CommitError, Consumer, FencedError
from runtime.kafka.producer import Producer
from runtime.lag import report_lag
from runtime.logs import get_logger
from runtime.metrics import BATCHED
from runtime.metrics import DEAD_LETTERS as DEAD_LETTERS_COUNTER
from runtime.process import Context, crash_point
from runtime.records import ConsumerRecord
from schemas.codec import DecodeError
from schemas.topics import DEAD_LETTERS, catalogue
from sinks import clickhouse, schema
from sinks.batching import Batch
from sinks.hours import keep_hours
from sinks.prices import write_prices
from sinks.residual import report_residual
from sinks.rows import SOURCES
from sinks.storing import store_batch

log = get_logger("sink")

GROUP = "heliograph-sink"
# A status must be readable within a second: 0.2 s here, 0.5 s until the flush (settings), the rest for the insert.
FETCH_WAIT_MS = 200
FETCH_MIN_BYTES = 1_000_000
QUEUED_KBYTES = 65_536
"""Read ahead while an insert takes its second."""
FETCH_RECORDS = 10_000
"""Taken at once: more cost more each, by what the processor's caches hold."""
MAX_POLL_INTERVAL_MS = 120_000
# Both below the poll interval: a call that hangs must not cost the membership.
INSERT_TIMEOUT_S = 60.0
PUBLISH_TIMEOUT_S = 20.0
BACKOFF_S = (0.1, 5.0)
POLL_S = 0.25
START_TIMEOUT_S = 10.0
"""A store that is unavailable at the start is more often a wrong setting than an outage: after this the sink reports it and ends."""
REVOKE_TIMEOUT_S = 1.0
STOP_TIMEOUT_S = 8.0
"""How long the last flush may be tried after SIGTERM; what it does not get done is read again."""
MAX_FENCES = 20
"""Refusals by the group without a record in between; then a new process has better chances."""


class Sink:
    """The loop; every method on one thread but `not_ready`."""

    def __init__(
        self,
        context: Context,
        consumer: Consumer,
        producer: Producer,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._context, self._clock, self._monotonic = context, clock, monotonic
        self._settings = context.settings
        self._consumer, self._producer = consumer, producer
        self._client: Client | None = None
        self._batch = self._new_batch()
        self._owned: set[Partition] = set()
        self._fences = 0
        self._flushing = self._assigned = self._paused = False
        self._brake = DeadLetterBrake(context.settings.dead_letters, "sink", monotonic=monotonic)
        self._judged: Batch | None = None
        self._trouble: Reason = "not connected to ClickHouse yet"

    def not_ready(self) -> Reason:
        """None when rows reach the store, else why they do not."""
        if self._trouble is not None:
            return self._trouble
        return None if self._assigned else "waits for the partitions of its group"

    def run(self) -> None:
        """Sink until the context stops, then flush and commit."""
        interval_s = self._settings.sink.flush_interval_ms / 1000
        flush_at = 0.0
        try:
            if not self._until_done(self._connect, START_TIMEOUT_S):
                raise UnavailableError(self._trouble or "ClickHouse does not answer")
            self._consumer.subscribe(
                list(SOURCES), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
            while not self._context.stopping.is_set():
                left = flush_at - self._monotonic() if self._batch.count else POLL_S
                if left <= 0 or not self._batch.capacity:
                    self.flush()
                    continue
                empty = not self._batch.count
                self._take(self._batch.capacity, min(left, POLL_S))
                BATCHED.set(self._batch.count)
                if empty and self._batch.count:
                    flush_at = self._monotonic() + interval_s
            self.flush(STOP_TIMEOUT_S)
        finally:
            self._consumer.close()
            if self._client is not None:
                self._client.close()

    # -- ownership --------------------------------------------------------------------------------------------------

    def _on_assign(self, partitions: list[Partition]) -> None:
        self._owned.update(partitions)
        self._assigned = True
        log.info("partitions assigned", partitions=len(partitions))

    def _on_revoke(self, partitions: list[Partition]) -> None:
        # A flush that waits for a store may take any time: leave the batch to the next owner, which reads it again.
        if not self._flushing:
            self.flush(REVOKE_TIMEOUT_S)
        self._on_lost(partitions)

    def _on_lost(self, partitions: list[Partition]) -> None:
        self._owned.difference_update(partitions)
        self._drop()

    def _drop(self) -> None:
        """Forget what is not committed: it is read again, by us or by the next owner."""
        self._batch = self._new_batch()

    def _new_batch(self) -> Batch:
        return Batch(self._settings.sink.max_rows)

    # -- reading ----------------------------------------------------------------------------------------------------

    def _take(self, max_records: int, timeout_s: float) -> None:
        """Read into the batch: the one there is after the call, in which partitions may go and come and the batch with them."""
        try:
            runs = self._consumer.consume_batches(min(max_records, FETCH_RECORDS), timeout_s)
        except FencedError as exc:
            self._fenced(exc)
            return
        except UnavailableError as exc:
            self._context.exit_now(f"cannot read the positions of the assigned partitions: {exc}")
        if runs:
            self._fences = 0
        self._batch.add(runs)
        if not self._batch.count:
            self._commit_what_was_passed()

    def _commit_what_was_passed(self) -> None:
        """With an empty batch: the end of a log may hold no record (a transaction's marker), but counts as read."""
        try:
            self._consumer.commit(self._consumer.progress())
        except FencedError as exc:
            self._fenced(exc)
        except CommitError as exc:
            log.debug("not committed yet", error=str(exc))

    def _fenced(self, error: FencedError) -> None:
        # Rows already stored are stored once more by the partitions' owner, which changes nothing.
        log.warning("no longer the owner", error=str(error))
        self._fences += 1
        if self._fences > MAX_FENCES:
            self._context.exit_now(f"the group refuses us for good: {error}")
        self._drop()

    # -- writing ----------------------------------------------------------------------------------------------------

    def flush(self, timeout_s: float | None = None) -> None:
        """Store the batch and commit it. Tries for `timeout_s`, by default until done or the context stops."""
        if not self._batch.count:
            return
        self._flushing = True
        try:
            if not self._until_done(self._write, timeout_s):
                log.warning("not stored in time; it will be read again", records=self._batch.count)
                self._drop()
        finally:
            self._flushing = False

    def _until_done(self, step: Callable[[], None], timeout_s: float | None = None) -> bool:
        """Run a step until it succeeds; False when there is no time left for it."""
        deadline = None if timeout_s is None else self._monotonic() + timeout_s
        delay = BACKOFF_S[0]
        while not self._try(step):
            if deadline is None and self._context.stopping.is_set():
                deadline = self._monotonic() + STOP_TIMEOUT_S
            if deadline is not None and self._monotonic() + delay > deadline:
                return False
            self._wait(delay * random.uniform(0.5, 1), poll=step == self._write and timeout_s is None)
            delay = min(delay * 2, BACKOFF_S[1])
        if self._paused:
            self._consumer.resume(self._owned)
            self._paused = False
        return True

    def _try(self, step: Callable[[], None]) -> bool:
        """False when the step must be retried; readiness then says why."""
        try:
            step()
        except (HeliographError, CommitError) as exc:
            if self._trouble != str(exc):
                log.warning("store failed, retrying", error=str(exc))
            self._trouble = str(exc)
            return False
        except FencedError as exc:
            self._fenced(exc)
        if self._trouble is not None:
            log.info("writing")
        self._trouble = None
        return True

    def _wait(self, seconds: float, *, poll: bool) -> None:
        """Let time pass. With `poll` the consumer polls, and new records join the batch while it has capacity."""
        if not poll:  # inside a callback of the group, or at the end
            time.sleep(seconds)
            return
        capacity = self._batch.capacity
        if not capacity and not self._paused:
            # Not before: partitions paused and resumed while their broker restarts were seen never to be fetched again.
            self._consumer.pause(self._owned)
            self._paused = True
        # A few records may come all the same: of partitions given to us within this very call.
        self._take(min(100, capacity) or 100, seconds)

    def _connect(self) -> None:
        schema.migrate(self._settings.clickhouse)
        self._client = clickhouse.connect(self._settings.clickhouse, timeout_s=INSERT_TIMEOUT_S)
        write_prices(self._settings, self._client, self._clock())

    def _write(self) -> None:
        """One turn; what is done is taken out of the batch, so that a second try does the rest only."""
        batch = self._batch
        if self._client is None:
            self._connect()
        assert self._client is not None
        store_batch(self._settings.clickhouse, self._client, batch)
        self._dead_letter_poison(batch)
        crash_point("after_insert", self._settings.crash_at)
        self._consumer.commit(batch.offsets)
        self._drop()

    def _dead_letter_poison(self, batch: Batch) -> None:
        if self._judged is not batch:  # a second try is not a second record
            self._judged = batch
            self._brake.check(batch.count, len(batch.poison))
        elif reason := self._brake.not_ready():
            raise DeadLetterFlood(reason)
        now = self._clock()
        dead_letters = []
        for record, error in batch.poison:
            if record.topic == DEAD_LETTERS:
                # A dead letter about a dead letter would come back here, without end.
                DEAD_LETTERS_COUNTER.labels("sink", "unreadable_dead_letter").inc()
                log.error("skipped", topic=record.topic, partition=record.partition, offset=record.offset)
            else:
                reason = UNDECODABLE if isinstance(error, DecodeError) else INTERNAL_ERROR
                dead_letters.append(
                    dead_letter_record(record, stage=stage_of(record), reason=reason, error=error, now=now)
                )
        publish_dead_letters(self._producer.publish, dead_letters)
        batch.poison.clear()


def stage_of(record: ConsumerRecord) -> str:
    """The stage that dead-letters a record: the router rejects an invalid request too, and both make the same dead letter."""
    return "router" if catalogue()[record.topic].record == "NotificationRequest" else "sink"


async def run_sink(context: Context) -> None:
    """Write requests, statuses, receipts and dead letters to ClickHouse until the context stops."""
    kafka = context.settings.kafka
    consumer = Consumer(
        kafka,
        client_id="sink",
        group=GROUP,
        fetch_wait_ms=FETCH_WAIT_MS,
        fetch_min_bytes=FETCH_MIN_BYTES,
        queued_kbytes=QUEUED_KBYTES,
        max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
    )
    producer = Producer(kafka, client_id="sink", delivery_timeout_s=PUBLISH_TIMEOUT_S)
    sink = Sink(context, consumer, producer)
    context.health.require("sink", sink.not_ready)
    context.health.started()
    reports = [
        asyncio.create_task(report_lag(kafka, GROUP, list(SOURCES), context.stopping)),
        asyncio.create_task(report_residual(context.settings.clickhouse, context.stopping)),
    ]
    keep_hours(context.settings.clickhouse, context.stopping.is_set)
    try:
        await asyncio.to_thread(sink.run)
    finally:
        for report in reports:
            report.cancel()
        await asyncio.to_thread(producer.close)
