"""The relay publishes outbox rows to the compacted topics, in order, and deletes them once all replicas acknowledged.

One relay is active (advisory lock), others wait for the lock. Rows are found by query, never by a remembered position, so one
that becomes visible late is not skipped; writers hold the lock of their entity's row, so per key the ids are in order.
Of several rows of a key in a batch only the last is published: a batch that is published again after a crash then shows
no older value after a newer one. A row that Kafka refuses for its size stays, and the others continue (set_aside.py).
The same process runs feedback (feedback.py): it handles recipients reported as invalid. Its errors do not end the relay.
May import psycopg. Never: what a row means.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import LiteralString, Protocol

import psycopg
from psycopg.rows import class_row

from producers.reference.feedback_consumer import GROUP as FEEDBACK_GROUP
from producers.reference.feedback_consumer import FeedbackConsumer
from producers.reference.resends import forgotten_below
from producers.reference.schema import CONNECT_TIMEOUT_S, WRITABLE, unavailable
from producers.reference.set_aside import OutboxEntry, SetAside
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.errors import PublishError, TooLargeError
from runtime.kafka.producer import Producer
from runtime.lag import report_lag
from runtime.logs import get_logger
from runtime.metrics import OUTBOX_PENDING, OUTBOX_SET_ASIDE, RELAYED
from runtime.process import Context, crash_point
from runtime.records import ProducerRecord
from runtime.settings import Settings
from schemas.topics import STATUS

log = get_logger("relay")
CHANNEL = "heliograph_outbox"
MAX_BATCH = 1_000
KEPT_DAYS = 8
"""Idempotency keys live a day longer than the seven that are promised."""


def _forgotten(now: int) -> dict[str, tuple[LiteralString, object]]:
    """Per table which of its rows have expired: a condition, and its parameter."""
    return {
        "idempotency_keys": ("accepted_at < %s", now - KEPT_DAYS * 86_400_000),
        "resends": ("notification_id < %s", forgotten_below(now)),
    }


_AT_ONCE = 5_000

_LOCK = 0x68656C696F02
_WAIT_S = 0.25
_STANDBY_S = 0.5
_CENSUS_S = 5.0
_PURGE_S = 3_600.0
_STOP_S = 15.0
_DELIVERY_TIMEOUT_S = 10.0


def last_per_key(entries: Sequence[OutboxEntry]) -> list[ProducerRecord]:
    """One record per topic and key, the last; in the order of the rows."""
    last = {(entry.topic, entry.key): entry for entry in entries}
    return [
        ProducerRecord(e.topic, e.key.encode(), bytes(e.value) if e.value is not None else None)
        for e in sorted(last.values(), key=lambda entry: entry.id)
    ]


class Publisher(Protocol):
    """The part of runtime.kafka.Producer that is used."""

    async def send(self, records: Sequence[ProducerRecord]) -> None: ...


class Relay:
    """Publishes until stopped."""

    def __init__(
        self,
        settings: Settings,
        stopping: asyncio.Event,
        producer: Publisher,
        *,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._settings = settings
        self._stopping = stopping
        self._producer = producer
        self._dsn = settings.postgres.dsn.get_secret_value()
        self.state = "starting"
        """connecting, standby, active: what readiness looks at."""
        self._clock = clock
        self._monotonic = monotonic
        self.set_aside = SetAside()
        self._census_at = self._purge_at = -inf  # a clock that began with the machine may be younger than an hour

    async def connect(self) -> psycopg.AsyncConnection[OutboxEntry]:
        """A connection that notices a dead server. Raises psycopg.OperationalError."""
        return await psycopg.AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            row_factory=class_row(OutboxEntry),
            target_session_attrs=WRITABLE,
        )

    async def run(self, connection: psycopg.AsyncConnection[OutboxEntry]) -> None:
        """Serve on `connection`, and on new ones when it breaks."""
        failures = 0
        current: psycopg.AsyncConnection[OutboxEntry] | None = connection
        while not self._stopping.is_set():
            try:
                if current is None:
                    current = await self.connect()
                    log.info("PostgreSQL answers again")
                failures = 0
                async with current:
                    await self._serve(current)
            except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction) as exc:
                self.state = "connecting"
                failures += 1
                log.warning("PostgreSQL does not answer", error=type(exc).__name__)
                await self._pause(min(5.0, 0.1 * 2**failures))
            current = None

    async def _serve(self, connection: psycopg.AsyncConnection[OutboxEntry]) -> None:
        if not await self._become_active(connection):
            return
        await connection.execute(f"LISTEN {CHANNEL}")
        failures = 0
        while not self._stopping.is_set():
            try:
                published = await self._publish_batch(connection)
                failures = 0
            except PublishError as exc:
                # Kafka may have the records or not: the same rows are published again.
                failures += 1
                log.warning("publish not acknowledged", error=str(exc))
                await self._pause(min(5.0, 0.1 * 2**failures))
                continue
            await self._look_after(connection)
            if published < MAX_BATCH:
                async for _ in connection.notifies(timeout=_WAIT_S, stop_after=1):
                    pass

    async def _become_active(self, connection: psycopg.AsyncConnection[OutboxEntry]) -> bool:
        while not self._stopping.is_set():
            cursor = connection.cursor(row_factory=psycopg.rows.scalar_row)
            await cursor.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,))
            if await cursor.fetchone():
                log.info("active")
                self.state = "active"
                return True
            self.state = "standby"
            await self._pause(_STANDBY_S)
        return False

    async def _publish_batch(self, connection: psycopg.AsyncConnection[OutboxEntry]) -> int:
        """How many rows were looked at."""
        cursor = await connection.execute(
            "SELECT id, topic, key, value FROM outbox WHERE id <> ALL(%s::bigint[]) ORDER BY id LIMIT %s",
            (self.set_aside.ids_to_skip(self._monotonic()), MAX_BATCH),
        )
        entries = await cursor.fetchall()
        if not entries:
            return 0
        published = await self._publish(entries)
        crash_point("relay_after_publish", self._settings.crash_at)
        # By id, never "all up to": a row with a lower id may have become visible in between.
        ids = [*(entry.id for entry in published), *self.set_aside.done(published)]
        await connection.execute("DELETE FROM outbox WHERE id = ANY(%s)", (ids,))
        self.set_aside.forget(ids)
        OUTBOX_SET_ASIDE.set(self.set_aside.count())
        for topic, count in Counter(entry.topic for entry in published).items():
            RELAYED.labels(topic).inc(count)
        return len(entries)

    async def _publish(self, entries: Sequence[OutboxEntry]) -> Sequence[OutboxEntry]:
        """Those that are over with: Kafka has them, or a newer one of their key. Raises PublishError."""
        try:
            await self._producer.send(last_per_key(entries))
        except TooLargeError as exc:
            keys = {(record.topic, record.key) for record in exc.records}
            refused = {(e.topic, e.key): e for e in entries if (e.topic, e.key.encode()) in keys}  # the last of its key
            for entry in self.set_aside.refused(refused.values(), self._monotonic()):
                log.error(
                    "a row is larger than its topic takes and is set aside: raise the topic's max.message.bytes",
                    outbox_id=entry.id,
                    topic=entry.topic,
                    size=entry.size,
                )
            # An older row of a refused key is not over with: the next batch publishes it.
            return [entry for entry in entries if (entry.topic, entry.key) not in refused]
        return entries

    async def _look_after(self, connection: psycopg.AsyncConnection[OutboxEntry]) -> None:
        """Count waiting rows, and delete expired ones."""
        now = self._monotonic()
        if now - self._census_at > _CENSUS_S:
            self._census_at = now
            cursor = connection.cursor(row_factory=psycopg.rows.scalar_row)
            await cursor.execute("SELECT count(*) FROM outbox")
            OUTBOX_PENDING.set(max(0, (await cursor.fetchone() or 0) - self.set_aside.count()))
        if now - self._purge_at > _PURGE_S:
            counts = []
            for table, (condition, parameter) in _forgotten(self._clock()).items():
                done = await connection.execute(
                    f"DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE {condition} LIMIT {_AT_ONCE}))",
                    (parameter,),
                )
                counts.append(done.rowcount)
            if max(counts) < _AT_ONCE:
                self._purge_at = now

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


async def run_relay(context: Context) -> None:
    """The role `relay`. Raises UnavailableError when PostgreSQL does not answer at the start."""
    settings = context.settings
    producer = Producer(settings.kafka, client_id="relay", linger_ms=0, delivery_timeout_s=_DELIVERY_TIMEOUT_S)
    relay = Relay(settings, context.stopping, producer)
    feedback = FeedbackConsumer(settings)
    try:
        try:
            connection = await relay.connect()
        except psycopg.OperationalError as exc:
            raise unavailable(exc) from exc
        context.health.require(
            "PostgreSQL", lambda: None if relay.state in ("active", "standby") else f"{relay.state}, not connected"
        )
        context.health.note("feedback", feedback.trouble)
        context.health.note("outbox", relay.set_aside.trouble)
        context.health.started()
        feedback.start()
        lag = asyncio.create_task(report_lag(settings.kafka, FEEDBACK_GROUP, [STATUS], context.stopping))
        serving = asyncio.create_task(relay.run(connection))
        stopped = asyncio.create_task(context.stopping.wait())
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        context.stopping.set()
        # A batch in flight is finished; if the server never answers, it is abandoned.
        done, late = await asyncio.wait([serving], timeout=_STOP_S)
        for task in late:
            task.cancel()
        lag.cancel()
        for task in done:
            task.result()
    finally:
        await asyncio.to_thread(feedback.stop, _STOP_S)
        await asyncio.to_thread(producer.close)
