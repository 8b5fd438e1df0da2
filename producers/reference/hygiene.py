"""What providers call invalid is not sent to again: dead devices leave the profile, bounced addresses are suppressed.

    | status                                       | becomes                                                     |
    |----------------------------------------------|-------------------------------------------------------------|
    | bounced / invalid_token of a user's push     | the device leaves the profile                               |
    | bounced / hard_bounce of an e-mail           | suppression `hard_bounce`                                   |
    | bounced / invalid_number of an SMS           | suppression `invalid_number`: each further try costs money  |
    | the same, the recipient having said STOP     | suppression `unsubscribe`                                   |
    | any other                                    | nothing                                                     |

A status has no address. It names the user (`recipient`) or the fingerprint, and the message, whose id is a function of the
fingerprint: the device, address or number that gives that id is the one. A device that registered after its provider calls
it dead stays; an address that a person took off the list after it bounced stays off.
The brake: while more than 5 % (and at least 20) of an account's messages of the last minute are called invalid, nothing of
that account is dropped or suppressed; then a topic, a key or a setting is wrong, not the recipients. A STOP is a person's
wish: it neither counts nor waits.
At least once: offsets are committed after PostgreSQL has committed, and doing it again changes nothing.
May import runtime and the store. What never enters here: a provider, an address or a token in a log.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, cast

from producers.reference.database import Database
from producers.reference.store import Bounced, ReferenceStore
from runtime import ids
from runtime.errors import UnavailableError
from runtime.kafka import CommitError, Consumer, FencedError
from runtime.logs import get_logger
from runtime.metrics import BOUNCED_ADDRESSES, DEAD_DEVICES, DROP_BRAKE
from runtime.records import InRecord
from runtime.settings import Settings
from runtime.status import says_opted_out, since
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
MAX_SOURCE = 255
UNSUBSCRIBE = "unsubscribe"
_SUPPRESSED = {("email", "hard_bounce"): "hard_bounce", ("sms", "invalid_number"): "invalid_number"}
_INVALID = frozenset({"invalid_token", "hard_bounce", "invalid_number"})
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
        return _is_of(self.notification_id, "push", ids.address_hash("push", token), self.message_id)


class BouncedAddress(NamedTuple):
    """An address or number that a provider calls invalid, or whose owner told it to stop."""

    status: DeliveryStatus
    message_id: str
    recipient: str
    reason: str

    def is_address(self, fingerprint: str) -> bool:
        """Whether it is the one with this fingerprint."""
        return _is_of(self.status["notification_id"], self.status["channel"] or "", fingerprint, self.message_id)


def _is_of(notification_id: str, channel: str, fingerprint: str, message_id: str) -> bool:
    return any(
        ids.message_id(notification_id, channel, fingerprint, generation) == message_id
        for generation in range(MAX_GENERATIONS)
    )


class Brake:
    """Per account, the messages of the last minute and how many of them were called invalid; no clock of its own."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[tuple[float, bool]]] = {}
        self._invalid: dict[str, int] = {}

    def saw(self, provider: str, invalid: bool, now_s: float) -> None:
        """A message of this account ended."""
        self._windows.setdefault(provider, deque()).append((now_s, invalid))
        self._invalid[provider] = self._invalid.get(provider, 0) + invalid

    def holds(self, provider: str, now_s: float) -> bool:
        """Whether nothing of this account may be dropped or suppressed now."""
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
    """The statuses of messages that an account has ended; what does not decode is the sink's to report."""
    found: list[DeliveryStatus] = []
    for record in records:
        try:
            status = cast(DeliveryStatus, codec("DeliveryStatus").decode(record.value))
        except DecodeError:
            continue
        if status["channel"] and status["provider"] and status["state"] in states().settled:
            found.append(status)
    return found


def dead_device(status: DeliveryStatus) -> DeadDevice | None:
    """The device a status calls dead; None when it calls none dead, or not one of a user."""
    if (
        (status["channel"], status["reason"]) != ("push", "invalid_token")
        or not status["recipient"]
        or not status["message_id"]
    ):
        return None
    told = since(status["detail"])
    return DeadDevice(
        status["tenant"], status["recipient"], status["notification_id"], status["message_id"], status["provider"] or "",
        status["occurred_at"] if told is None else min(told, status["occurred_at"]),
    )  # fmt: skip


def bounced_address(status: DeliveryStatus) -> BouncedAddress | None:
    """The address a status calls invalid; None when it calls none so."""
    if status["state"] != "bounced" or not status["recipient"] or not status["message_id"]:
        return None
    reason = _SUPPRESSED.get((status["channel"] or "", status["reason"] or ""))
    if reason is None:
        return None
    return BouncedAddress(
        status, status["message_id"], status["recipient"], UNSUBSCRIBE if is_stop(status) else reason
    )  # fmt: skip


def is_stop(status: DeliveryStatus) -> bool:
    """Whether the recipient told the provider to stop."""
    return status["reason"] == "invalid_number" and says_opted_out(status["detail"])


class Hygiene:
    """Judges batches of statuses."""

    def __init__(self, store: ReferenceStore) -> None:
        self._store, self._brake = store, Brake()
        self._braked: set[str] = set()

    async def judge(self, records: Sequence[InRecord], now_s: float) -> None:
        """Drop and suppress what a batch calls invalid. Raises UnavailableError; then the batch may be judged again."""
        statuses = decoded(records)
        for status in statuses:
            if not is_stop(status):
                self._brake.saw(status["provider"] or "", status["reason"] in _INVALID, now_s)
        self._report(now_s)
        for status in statuses:
            if (dead := dead_device(status)) is not None:
                await self._judge_device(dead)
            elif (bounced := bounced_address(status)) is not None:
                await self._judge_address(bounced)

    async def _judge_device(self, dead: DeadDevice) -> None:
        if dead.provider in self._braked:
            DEAD_DEVICES.labels("braked").inc()
            return
        dropped = await self._drop(dead)
        DEAD_DEVICES.labels("dropped" if dropped else "unknown").inc()
        if dropped:
            log.info("device dropped", notification_id=dead.notification_id, provider=dead.provider)

    async def _judge_address(self, bounced: BouncedAddress) -> None:
        channel, provider = bounced.status["channel"] or "", bounced.status["provider"] or ""
        if provider in self._braked and bounced.reason != UNSUBSCRIBE:
            BOUNCED_ADDRESSES.labels(channel, "braked").inc()
            return
        outcome = await self._suppress(bounced, channel, provider)
        BOUNCED_ADDRESSES.labels(channel, outcome).inc()
        if outcome == "suppressed":
            log.info(
                "address suppressed", notification_id=bounced.status["notification_id"], provider=provider,
                reason=bounced.reason,
            )  # fmt: skip

    async def _suppress(self, bounced: BouncedAddress, channel: str, provider: str) -> str:
        status = bounced.status
        try:
            return await self._store.suppress_bounced(
                Bounced(
                    status["tenant"], channel, bounced.recipient, bounced.is_address, bounced.reason,
                    f"{provider}: {status['detail'] or status['reason']}"[:MAX_SOURCE], status["occurred_at"],
                )
            )  # fmt: skip
        except ValueError:
            return "unknown"  # an id that is no UUID: a stranger wrote this status

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
                log.error("too many recipients are called invalid, none is dropped or suppressed: is the account's setup right?", provider=provider)  # fmt: skip
            elif not holds and provider in self._braked:
                self._braked.discard(provider)
                log.info("invalid recipients are dropped and suppressed again", provider=provider)


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
