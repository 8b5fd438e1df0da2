"""Runs the feedback consumer beside the relay: in a thread and an event loop of its own, restarted when it ends.

    | event                                                 | result                                                        |
    |-------------------------------------------------------|---------------------------------------------------------------|
    | PostgreSQL or our code cannot process a status        | skipped and counted (feedback.py)                             |
    | PostgreSQL or Kafka is unavailable, or a rebalance    | the same statuses are processed again after a pause           |
    | anything else                                         | logged; the consumer is restarted after a pause that grows    |

None of this ends the relay or its readiness: reference data is published even if no bounce can be read. `/readyz`
(`degraded`) and heliograph_feedback_running report it.
At least once: offsets are committed after PostgreSQL has committed, and doing it again changes nothing.
May import runtime and the store. Never: what a status means.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from producers.reference.database import Database
from producers.reference.feedback import Feedback
from producers.reference.store import ReferenceStore
from runtime.clock import system_monotonic
from runtime.errors import UnavailableError
from runtime.kafka.consumer import CommitError, Consumer, FencedError
from runtime.logs import get_logger
from runtime.metrics import FEEDBACK_RUNNING
from runtime.records import PartitionBatch
from runtime.settings import Settings
from schemas.topics import RECEIPTS, STATUS

log = get_logger("feedback")
GROUP = "heliograph-hygiene"
GATHER_S = 1.0
"""Statuses are processed a second's worth at a time, so that the brake sees an incident before the first device is dropped."""
MAX_BATCH = 5_000
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
_STEADY_S = 60.0
"""Who ran as long as this begins with the short pause again."""
_POOL_SIZE = 2
_EXPECTED = (UnavailableError, CommitError, FencedError)


class FeedbackConsumer:
    """Judges statuses on a thread of its own until it is stopped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="feedback", daemon=True)
        self._trouble: str | None = "starting"

    def trouble(self) -> str | None:
        """Why nothing is processed now; None while all is well."""
        return self._trouble

    def start(self) -> None:
        """Begin."""
        FEEDBACK_RUNNING.set(0)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Finish the current batch; one that does not end in time is processed again by the next owner."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _live(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = system_monotonic()
            try:
                asyncio.run(self._process_all())
            except _EXPECTED as exc:
                self._is_down(str(exc))
                log.warning("statuses will be processed again", error=str(exc))
            except Exception as exc:
                self._is_down(f"{type(exc).__name__}, see the log")
                log.exception("the feedback consumer ended and is started again", pause_s=pause)
            pause = FIRST_PAUSE_S if system_monotonic() - started > _STEADY_S else min(MAX_PAUSE_S, pause * 2)
            self._stopping.wait(pause)
        FEEDBACK_RUNNING.set(0)

    def _is_up(self) -> None:
        self._trouble = None
        FEEDBACK_RUNNING.set(1)

    def _is_down(self, why: str) -> None:
        self._trouble = why
        FEEDBACK_RUNNING.set(0)

    async def _process_all(self) -> None:
        """Process until stopped. Raises UnavailableError when PostgreSQL does not answer, and errors that end a membership."""
        settings = self._settings
        database = Database(settings.postgres.model_copy(update={"pool_size": _POOL_SIZE}))
        await database.open()
        feedback = Feedback(ReferenceStore(database), {provider.name for provider in settings.providers})
        with ThreadPoolExecutor(1, thread_name_prefix="feedback") as thread:  # a consumer belongs to one thread
            try:
                while not self._stopping.is_set():
                    await self._serve(feedback, thread)
            finally:
                await database.close()

    async def _serve(self, feedback: Feedback, thread: ThreadPoolExecutor) -> None:
        """One membership of the group: a batch that cannot be processed is left to the next."""
        loop = asyncio.get_running_loop()
        consumer = Consumer(self._settings.kafka, client_id="feedback", group=GROUP)
        consumer.subscribe([STATUS, RECEIPTS])
        self._is_up()
        try:
            while not self._stopping.is_set():
                batches = await loop.run_in_executor(thread, _gather, consumer)
                now_s = system_monotonic()
                if receipts := _values(batches, RECEIPTS):
                    await feedback.process_receipts(receipts, now_s)
                if statuses := _values(batches, STATUS):
                    await feedback.process(statuses, now_s)
                # Everything read is processed; an offset without a record (a transaction's marker) counts as read.
                await loop.run_in_executor(thread, _commit, consumer)
        except _EXPECTED as exc:
            # The brake's memory and the connections are kept: only the group membership is renewed.
            self._is_down(str(exc))
            log.warning("statuses will be processed again", error=str(exc))
            await asyncio.to_thread(self._stopping.wait, FIRST_PAUSE_S)
        finally:
            await loop.run_in_executor(thread, consumer.close)


def _commit(consumer: Consumer) -> None:
    consumer.commit(consumer.progress())


def _gather(consumer: Consumer) -> list[PartitionBatch]:
    """What comes within a second of the first record; [] when none comes for half of one."""
    batches = consumer.consume_batches(MAX_BATCH, 0.5)
    count = sum(len(batch.values) for batch in batches)
    until = system_monotonic() + GATHER_S
    while batches and count < MAX_BATCH and (left := until - system_monotonic()) > 0:
        more = consumer.consume_batches(MAX_BATCH - count, left)
        count += sum(len(batch.values) for batch in more)
        batches += more
    return batches


def _values(batches: Sequence[PartitionBatch], topic: str) -> list[bytes | None]:
    return [value for batch in batches if batch.topic == topic for value in batch.values]
