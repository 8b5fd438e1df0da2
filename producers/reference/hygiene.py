"""Dead devices leave the profile: statuses that say `bounced` / `invalid_token` against the devices of their user.

A status has no address. It names the user (`recipient`) and the message, whose id is a function of the token: the device
whose token gives that id is the dead one. A device that registered after its provider calls it dead stays.
The brake: while more than 5 % (and at least 20) of an account's pushes of the last minute say `invalid_token`, nothing of
that account is dropped; then a topic, a key or an environment is wrong, not the devices.
At least once: offsets are committed after PostgreSQL has committed, and dropping a device that is gone changes nothing.
May import runtime and the store. What never enters here: a provider, a token in a log.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

from producers.reference.database import Database
from producers.reference.store import ReferenceStore
from runtime import ids
from runtime.errors import UnavailableError
from runtime.kafka import CommitError, Consumer, FencedError
from runtime.logs import get_logger
from runtime.metrics import DEAD_DEVICES, DROP_BRAKE
from runtime.records import InRecord
from runtime.settings import Settings
from runtime.status import since
from schemas.codec import DecodeError, codec
from schemas.events import DeliveryStatus, states
from schemas.topics import STATUS

log = get_logger("hygiene")
GROUP = "heliograph-hygiene"
WINDOW_S = 60.0
MIN_INVALID = 20
MAX_SHARE = 0.05
GATHER_S = 1.0
"""Statuses are judged a second's worth at a time, so that the brake sees an incident before the first device is dropped."""
MAX_BATCH = 5_000
MAX_GENERATIONS = 32
"""A status does not say which resend it is of; more resends than this of one notification leave a dead device in place."""
_RETRY_S = 1.0
_POOL_SIZE = 2


class DeadDevice(NamedTuple):
    """A device of a user that a provider calls dead."""

    tenant: str
    user_id: str
    notification_id: str
    message_id: str
    provider: str
    dead_since: int

    def is_device(self, token: str, registered_at: int | None) -> bool:
        """Whether this token is the one, and was registered before the provider called it dead."""
        if registered_at is not None and registered_at >= self.dead_since:
            return False
        fingerprint = ids.address_hash("push", token)
        return any(
            ids.message_id(self.notification_id, "push", fingerprint, generation) == self.message_id
            for generation in range(MAX_GENERATIONS)
        )


class Brake:
    """Per account, the pushes of the last minute and how many of them said invalid_token; no clock of its own."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[tuple[float, bool]]] = {}
        self._invalid: dict[str, int] = {}

    def saw(self, provider: str, invalid: bool, now_s: float) -> None:
        """A push of this account ended."""
        self._windows.setdefault(provider, deque()).append((now_s, invalid))
        self._invalid[provider] = self._invalid.get(provider, 0) + invalid

    def holds(self, provider: str, now_s: float) -> bool:
        """Whether nothing of this account may be dropped now."""
        window = self._windows.get(provider, deque())
        while window and window[0][0] <= now_s - WINDOW_S:
            self._invalid[provider] -= window.popleft()[1]
        invalid = self._invalid.get(provider, 0)
        return invalid >= MIN_INVALID and invalid > MAX_SHARE * len(window)

    @property
    def providers(self) -> list[str]:
        """Every account seen."""
        return list(self._windows)


def decoded(records: Iterable[InRecord]) -> list[DeliveryStatus]:
    """The statuses of pushes that an account has ended; what does not decode is the sink's to report."""
    found: list[DeliveryStatus] = []
    for record in records:
        try:
            status = cast(DeliveryStatus, codec("DeliveryStatus").decode(record.value))
        except DecodeError:
            continue
        if status["channel"] == "push" and status["provider"] and status["state"] in states().settled:
            found.append(status)
    return found


def dead_device(status: DeliveryStatus) -> DeadDevice | None:
    """The device a status calls dead; None when it calls none dead, or not one of a user."""
    if status["reason"] != "invalid_token" or not status["recipient"] or not status["message_id"]:
        return None
    told = since(status["detail"])
    return DeadDevice(
        status["tenant"], status["recipient"], status["notification_id"], status["message_id"], status["provider"] or "",
        status["occurred_at"] if told is None else min(told, status["occurred_at"]),
    )  # fmt: skip


class Hygiene:
    """Judges batches of statuses."""

    def __init__(self, store: ReferenceStore) -> None:
        self._store, self._brake = store, Brake()
        self._braked: set[str] = set()

    async def judge(self, records: Sequence[InRecord], now_s: float) -> None:
        """Drop the dead devices of a batch. Raises UnavailableError; then the batch may be judged again."""
        statuses = decoded(records)
        for status in statuses:
            self._brake.saw(status["provider"] or "", status["reason"] == "invalid_token", now_s)
        self._report(now_s)
        for dead in filter(None, map(dead_device, statuses)):
            if dead.provider in self._braked:
                DEAD_DEVICES.labels("braked").inc()
                continue
            dropped = await self._drop(dead)
            DEAD_DEVICES.labels("dropped" if dropped else "unknown").inc()
            if dropped:
                log.info("device dropped", notification_id=dead.notification_id, provider=dead.provider)

    async def _drop(self, dead: DeadDevice) -> int:
        try:
            return await self._store.drop_devices(dead.tenant, dead.user_id, dead.is_device)
        except ValueError:
            return 0  # an id that is no UUID: a stranger wrote this status

    def _report(self, now_s: float) -> None:
        for provider in self._brake.providers:
            holds = self._brake.holds(provider, now_s)
            DROP_BRAKE.labels(provider).set(holds)
            if holds and provider not in self._braked:
                self._braked.add(provider)
                log.error("too many devices are called dead, none is dropped: is the account's setup right?", provider=provider)  # fmt: skip
            elif not holds and provider in self._braked:
                self._braked.discard(provider)
                log.info("dead devices are dropped again", provider=provider)


async def run_hygiene(settings: Settings, stopping: asyncio.Event) -> None:
    """Judge statuses until told to stop. Raises UnavailableError when PostgreSQL does not answer at the start."""
    database = Database(settings.postgres.model_copy(update={"pool_size": _POOL_SIZE}))
    await database.open()
    hygiene = Hygiene(ReferenceStore(database))
    with ThreadPoolExecutor(1, thread_name_prefix="hygiene") as thread:  # a consumer belongs to one thread
        try:
            while not stopping.is_set():
                await _serve(settings, stopping, hygiene, thread)
        finally:
            await database.close()


async def _serve(settings: Settings, stopping: asyncio.Event, hygiene: Hygiene, thread: ThreadPoolExecutor) -> None:
    """One membership of the group: a batch that cannot be judged is left to the next."""
    loop = asyncio.get_running_loop()
    consumer = Consumer(settings.kafka, client_id="hygiene", group=GROUP)
    consumer.subscribe([STATUS])
    try:
        while not stopping.is_set():
            records = await loop.run_in_executor(thread, _gather, consumer)
            if not records:
                continue
            await hygiene.judge(records, time.monotonic())
            offsets = {(record.topic, record.partition): record.offset + 1 for record in records}
            await loop.run_in_executor(thread, consumer.commit, offsets)
    except (UnavailableError, CommitError, FencedError) as exc:
        log.warning("statuses will be judged again", error=str(exc))
        try:
            await asyncio.wait_for(stopping.wait(), _RETRY_S)
        except TimeoutError:
            return
    finally:
        await loop.run_in_executor(thread, consumer.close)


def _gather(consumer: Consumer) -> list[InRecord]:
    """What comes within a second of the first record; [] when none comes for half of one."""
    records = consumer.consume(MAX_BATCH, 0.5)
    until = time.monotonic() + GATHER_S
    while records and len(records) < MAX_BATCH and (left := until - time.monotonic()) > 0:
        records += consumer.consume(MAX_BATCH - len(records), left)
    return records
