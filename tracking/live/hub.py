"""Live status for this process: who watches what, fed by one reader, which starts with the first watcher.

    Kafka ─► reader (a thread: ring, look-up) ─► hub (the loop: facts, frames) ─► watchers ─► a face writes

A notification is registered, then read from ClickHouse, then completed by the ring: between the three nothing is missed, and what
comes twice is known by its event id. While the sink is behind what is held, the snapshot is not complete, and ClickHouse is asked
again until it is. A tenant sees its own facts only: each is compared, whatever place a stream resumes.
May import tracking and runtime. Never: HTTP, a frame of a protocol.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TypeVar
from uuid import UUID

from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.errors import Refusal, RefusedError, UnavailableError
from runtime.kafka.admin import Admin
from runtime.logs import get_logger
from runtime.metrics import LIVE_DROPPED, LIVE_RESUMES, LIVE_WATCHERS
from runtime.settings import KafkaSettings, LiveSettings
from schemas.topics import STATUS
from sinks.role import GROUP
from tracking.live.facts import Fact, fact_of
from tracking.live.places import Place, read_place, write_place
from tracking.live.reader import Reader, end_offsets, read_back
from tracking.live.ring import Entry
from tracking.live.watchers import (
    END_ID,
    Filters,
    Frame,
    NotificationWatcher,
    TenantWatcher,
    Watched,
    Watcher,
    reset_frame,
    status_frame,
)
from tracking.status import Found, Statuses, accepted_at_of, rollup

log = get_logger("live")
MAX_IDS = 100
MAX_WATCHED = 100_000
MAX_OF_A_TENANT = 2_000
MAX_WIDE = 50
MAX_WIDE_OF_A_KEY = 5
STREAM_S = 900.0
"""A stream lives so long at most: then it begins anew, at its place."""
KEEP_ALIVE_S = 15.0
STUCK_S = 30.0
"""A write that makes no progress for so long ends its stream."""
IDLE_S = 60.0
"""Without a watcher for so long, nothing is read."""
START_TIMEOUT_S = 10.0
TICK_S = 1.0
SINK_POLL_S = 0.25
RETRY_S = 0.5
STORE_WAIT_S = 4.0
"""A stream does not wait longer for ClickHouse; above the 3 s that a young id may take."""
MAX_READ_BACKS = 2

RevokedOf = Callable[[Collection[str]], Awaitable[set[str]]]
"""Ids of keys → those of them that are revoked; of none that this cannot be known of."""
T = TypeVar("T")


class Stream:
    """What a face gives a watcher: how it is woken, kept alive and cut off."""

    __slots__ = ()

    def wake(self) -> None:
        """There is something to take."""
        raise NotImplementedError

    def keep_alive(self, place: str) -> None:
        """Nothing was written for a while."""
        raise NotImplementedError

    def cut(self) -> None:
        """End it without a word: its reader does not read."""
        raise NotImplementedError


class Hub:
    """One per process, on one event loop."""

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: LiveSettings,
        statuses: Statuses,
        revoked_of: RevokedOf,
        *,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._kafka, self._settings, self._statuses, self._revoked_of = kafka, settings, statuses, revoked_of
        self._clock, self._monotonic = clock, monotonic
        self._reader: Reader | None = None
        self._starting: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._completing: asyncio.Task[None] | None = None
        self._place = ""
        self._watched: dict[tuple[str, str], Watched] = {}
        self._loading: dict[tuple[str, str], asyncio.Task[Watched]] = {}
        self._keys: dict[bytes, int] = {}
        """How many watched notifications have this key in the topic: what the reader looks for."""
        self._wide: dict[str, list[TenantWatcher]] = {}
        self._of_users: dict[tuple[str, str], list[TenantWatcher]] = {}
        self._tenants: dict[str, int] = {}
        self._streams: dict[Watcher, Stream] = {}
        self._of_tenant = Counter[str]()
        self._wide_of_key = Counter[str]()
        self._last_left = monotonic()
        self._stored: tuple[float, Place] | None = None
        self._asking: asyncio.Task[Place] | None = None
        self._reading_back = asyncio.Semaphore(MAX_READ_BACKS)
        self._stopping = False

    # ---------------------------------------------------------------- watch

    async def watch(
        self,
        stream: Stream,
        tenant: str,
        key_id: str,
        ids: Sequence[str],
        *,
        after: str | None = None,
        until_settled: bool = False,
        ends_in_s: float = STREAM_S,
    ) -> NotificationWatcher:
        """Watch notifications; a snapshot of each comes first. Raises RefusedError: an unknown id, too many watchers."""
        self._admit(tenant)
        now = self._monotonic()
        watcher = NotificationWatcher(
            tenant, key_id, stream.wake, now + ends_in_s, now, place=self.place, until_settled=until_settled
        )
        self._enter(watcher, stream)
        try:
            await self._start()
            found = await asyncio.gather(*(self._watch_one(tenant, text, watcher) for text in dict.fromkeys(ids)))
            if self._stopping:
                watcher.end("restart", self.place())
            watcher.begin(found)
        except BaseException:
            self.leave(watcher)
            raise
        if after is not None:
            LIVE_RESUMES.labels("snapshot").inc()
        return watcher

    async def watch_tenant(
        self,
        stream: Stream,
        tenant: str,
        key_id: str,
        filters: Filters,
        *,
        of_user: bool = False,
        after: str | None = None,
        ends_in_s: float = STREAM_S,
    ) -> tuple[TenantWatcher, list[Frame]]:
        """Watch a tenant; the watcher, and what comes before anything it takes. Raises RefusedError, UnavailableError.

        With `of_user` the filters name a user, for whose eyes it is: such streams are not counted as the tenant's.
        """
        self._admit(tenant)
        counted = f"{key_id}/{filters.user_id}" if of_user else key_id
        if self._wide_of_key[counted] >= MAX_WIDE_OF_A_KEY:
            raise _too_many("this key has as many streams of all notifications as it may")
        if not of_user and sum(map(len, self._wide.values())) >= MAX_WIDE:
            raise _too_many("as many streams of all notifications are open as may be")
        now = self._monotonic()
        watcher = TenantWatcher(tenant, key_id, stream.wake, now + ends_in_s, now, filters, counted)
        watcher.resuming = True
        self._wide_of_key[counted] += 1
        self._enter(watcher, stream)
        if of_user:
            self._of_users.setdefault((tenant, filters.user_id), []).append(watcher)
        else:
            self._wide.setdefault(tenant, []).append(watcher)
        self._tenants[tenant] = self._tenants.get(tenant, 0) + 1
        try:
            await self._start()
            first = [Frame("", "", self.place())] if after is None else await self._resume(watcher, after)
        except BaseException:
            self.leave(watcher)
            raise
        watcher.resuming = False
        if self._stopping:
            watcher.end("restart", self.place())
        return watcher, first

    def leave(self, watcher: Watcher) -> None:
        """It watches no more; harmless when it has left."""
        if self._streams.pop(watcher, None) is None:
            return
        LIVE_WATCHERS.dec()
        _count_down(self._of_tenant, watcher.tenant)
        if isinstance(watcher, NotificationWatcher):
            for key in watcher.keys:
                self._forget(watcher, key)
        elif isinstance(watcher, TenantWatcher):
            _count_down(self._wide_of_key, watcher.counted)
            _drop(self._wide, watcher.tenant, watcher)
            _drop(self._of_users, (watcher.tenant, watcher.filters.user_id), watcher)
            left = self._tenants.get(watcher.tenant, 0) - 1
            if left > 0:
                self._tenants[watcher.tenant] = left
            else:
                self._tenants.pop(watcher.tenant, None)
        self._last_left = self._monotonic()

    def place(self) -> str:
        """After everything that was delivered."""
        return self._place

    def stop(self) -> None:
        """End every stream at once; those that come later end when they begin."""
        self._stopping = True
        for watcher in list(self._streams):
            watcher.end("restart", self.place())

    async def close(self) -> None:
        """Stop, and read no more."""
        self.stop()
        for task in (self._ticking, self._completing, self._starting, self._asking, *self._loading.values()):
            if task is not None:
                task.cancel()
        await self._close_reader()

    # ---------------------------------------------------------------- who may

    def _admit(self, tenant: str) -> None:
        if len(self._streams) >= self._settings.max_watchers:
            raise RefusedError(Refusal.BUSY, "overloaded", "this process has as many watchers as it may: try another")
        if self._of_tenant[tenant] >= MAX_OF_A_TENANT:
            raise _too_many("this tenant has as many watchers as it may")

    def _enter(self, watcher: Watcher, stream: Stream) -> None:
        self._streams[watcher] = stream
        self._of_tenant[watcher.tenant] += 1
        LIVE_WATCHERS.inc()

    # ---------------------------------------------------------------- the reader's life

    async def _start(self) -> None:
        """The reader runs, and has read what was there. Raises RefusedError when that takes too long."""
        if self._reader is not None and self._reader.ready.is_set():
            return
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start_reader())
        await asyncio.shield(self._starting)

    async def _start_reader(self) -> None:
        loop = asyncio.get_running_loop()
        if self._reader is None:

            def deliver(facts: list[Fact], place: str) -> None:
                loop.call_soon_threadsafe(self._deliver, facts, place)

            self._reader = Reader(self._kafka, self._keys, self._tenants, deliver)
            self._reader.start()
            self._ticking = asyncio.create_task(self._tick())
        deadline = self._monotonic() + START_TIMEOUT_S
        while not self._reader.ready.is_set():
            if self._monotonic() > deadline:
                raise RefusedError(
                    Refusal.BUSY, "kafka_unavailable", "Kafka does not answer: nothing can be watched now"
                )
            await asyncio.sleep(0.01)
        ring = self._reader.ring
        if not self._place and ring is not None:
            self._place = write_place(self._reader.positions())

    async def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        self._place, self._stored = "", None
        if reader is not None:
            await asyncio.to_thread(reader.close)

    async def _tick(self) -> None:
        """Every second: keep alive, end what is over, stop reading when nobody watches."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._monotonic()
            for watcher, stream in list(self._streams.items()):
                if watcher.writing_since is not None:
                    if now - watcher.writing_since > STUCK_S:
                        stream.cut()
                elif now >= watcher.ends_at:
                    watcher.end("reconnect", self.place())
                elif now - watcher.written_at >= KEEP_ALIVE_S:
                    watcher.written_at = now
                    stream.keep_alive(self.place())
            try:
                await self._end_revoked()
            except Exception:
                log.exception("the keys of watchers cannot be checked")
            if not self._streams and not self._loading and now - self._last_left > IDLE_S:
                await self._close_reader()
                return

    async def _end_revoked(self) -> None:
        if not self._streams:
            return
        revoked = await self._revoked_of({watcher.key_id for watcher in self._streams})
        for watcher in list(self._streams) if revoked else ():
            if watcher.key_id in revoked:
                watcher.end("revoked", self.place())

    # ---------------------------------------------------------------- facts

    def _deliver(self, facts: list[Fact], place: str) -> None:
        """On the loop: what the reader found for somebody."""
        if self._reader is None:
            return
        for fact in facts:
            try:
                self._deliver_one(fact)
            except Exception:  # one fact must not keep the others from their watchers
                log.exception("a fact is not delivered", notification_id=fact.notification_id)
        self._place = place

    def _deliver_one(self, fact: Fact) -> None:
        self._place = fact.place
        watched = self._watched.get((fact.tenant, fact.notification_id))
        if watched is not None and watched.add(fact.event) and watched.loaded:
            frame = status_frame(fact, watched.current())
            dropped = sum(watcher.push(frame, watched) for watcher in list(watched.watchers))
            if dropped:
                LIVE_DROPPED.inc(dropped)
        wide = [*self._wide.get(fact.tenant, ()), *self._of_users.get((fact.tenant, fact.recipient), ())]
        wide = [watcher for watcher in wide if watcher.filters.match(fact)]
        if wide:
            frame = self._wide_frame(fact)
            dropped = sum(watcher.push(frame) for watcher in wide)
            if dropped:
                LIVE_DROPPED.inc(dropped)

    def _wide_frame(self, fact: Fact) -> Frame:
        """The status is that of the facts in the ring, up to this one."""
        events = {fact.event["event_id"]: fact.event}
        for known in self._in_ring(fact.tenant, fact.notification_id):
            events[known.event["event_id"]] = known.event
        current = rollup(fact.notification_id, accepted_at_of(UUID(fact.notification_id)), list(events.values()))
        return status_frame(fact, current)

    def _in_ring(self, tenant: str, notification_id: str) -> list[Fact]:
        ring = self._reader.ring if self._reader is not None else None
        if ring is None:
            return []
        facts = [fact_of(entry, "") for entry in ring.of(notification_id.encode())]
        return [fact for fact in facts if fact and fact.tenant == tenant and fact.notification_id == notification_id]

    # ---------------------------------------------------------------- notifications

    async def _watch_one(self, tenant: str, text: str, watcher: NotificationWatcher) -> Watched:
        notification_id = text.lower()
        key = (tenant, notification_id)
        watched = self._watched.get(key)
        if watched is None:
            if len(self._watched) >= MAX_WATCHED:
                raise RefusedError(Refusal.BUSY, "overloaded", "this process watches as many notifications as it may")
            watched = self._watched[key] = Watched(tenant, notification_id)
            in_topic = notification_id.encode()
            self._keys[in_topic] = self._keys.get(in_topic, 0) + 1
            task = self._loading[key] = asyncio.create_task(self._load(watched))
            task.add_done_callback(partial(self._loaded, key))
        watched.watchers.append(watcher)
        watcher.keys.append(key)
        if (loading := self._loading.get(key)) is not None:
            await asyncio.shield(loading)
        return watched

    def _loaded(self, key: tuple[str, str], task: asyncio.Task[Watched]) -> None:
        if self._loading.get(key) is task:
            del self._loading[key]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: all who waited may have left

    def _forget(self, watcher: NotificationWatcher, key: tuple[str, str]) -> None:
        watched = self._watched.get(key)
        if watched is None or watcher not in watched.watchers:
            return
        watched.watchers.remove(watcher)
        if not watched.watchers:
            del self._watched[key]
            in_topic = watched.id.encode()
            left = self._keys.get(in_topic, 0) - 1
            if left > 0:
                self._keys[in_topic] = left
            else:
                self._keys.pop(in_topic, None)

    async def _load(self, watched: Watched) -> Watched:
        """Its facts out of ClickHouse and the ring. Raises RefusedError for one that is unknown."""
        try:
            stored = await self._stored_up_to()
            try:
                async with asyncio.timeout(STORE_WAIT_S):
                    if self._in_ring(watched.tenant, watched.id):
                        found = await self._statuses.read(watched.tenant, watched.id) or Found(accepted=True)
                    else:
                        _, found = await self._statuses.find(watched.tenant, watched.id)
            except (UnavailableError, TimeoutError):
                # Live facts need no store; what is said is marked as not complete until it answers.
                self._merge(watched, Found(accepted=self._statuses.is_recent(watched.tenant, watched.id)), None)
            else:
                self._merge(watched, found, stored)
        except BaseException:
            # Whoever comes next asks again.
            for watcher in list(watched.watchers):
                self._forget(watcher, (watched.tenant, watched.id))
            raise
        watched.loaded = True
        if not watched.complete:
            self._complete_later()
        return watched

    def _merge(self, watched: Watched, found: Found, stored: Place | None) -> None:
        """`stored`: what the sink had stored before ClickHouse was asked; None when it did not answer."""
        assert self._reader is not None and self._reader.ring is not None
        if not watched.held_from:
            watched.held_from = self._reader.ring.starts()
        for event in found.events:
            watched.add(event)
        for fact in self._in_ring(watched.tenant, watched.id):
            watched.add(fact.event)
        watched.accepted = watched.accepted or found.accepted
        caught_up = stored is not None and all(map(int.__ge__, stored, watched.held_from))
        watched.complete = caught_up and not watched.truncated

    def _complete_later(self) -> None:
        if self._completing is None or self._completing.done():
            self._completing = asyncio.create_task(self._complete())

    async def _complete(self) -> None:
        """Ask ClickHouse again for what is not complete, until it is; then its watchers get it anew."""
        while True:
            await asyncio.sleep(RETRY_S)
            waiting = [w for w in self._watched.values() if w.loaded and not w.complete and not w.truncated]
            if not waiting or self._reader is None:
                return
            try:
                await self._complete_some(waiting)
            except UnavailableError:
                continue
            except Exception:
                log.exception("snapshots cannot be completed")

    async def _complete_some(self, waiting: Sequence[Watched]) -> None:
        stored = await self._stored_up_to()
        # ClickHouse has to have what is not held; before that there is nothing new to be had.
        due = [watched for watched in waiting if all(map(int.__ge__, stored, watched.held_from))]
        answers = await asyncio.gather(*(self._statuses.read(watched.tenant, watched.id) for watched in due))
        for watched, found in zip(due, answers, strict=True):
            if found is None and not watched.facts and not watched.accepted:
                watched.complete = True  # there is nothing
                for watcher in list(watched.watchers):
                    watcher.end("not_found", END_ID)
                continue
            self._merge(watched, found or Found(accepted=False), stored)
            for watcher in list(watched.watchers):
                watcher.refresh(watched)

    async def _stored_up_to(self) -> Place:
        """What the sink has committed, a moment ago at most. Zeros while Kafka does not say."""
        now = self._monotonic()
        if self._stored is not None and now - self._stored[0] < SINK_POLL_S:
            return self._stored[1]
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_stored())
        return await asyncio.shield(self._asking)

    async def _ask_stored(self) -> Place:
        asked_at = self._monotonic()
        try:
            committed, _ = await asyncio.to_thread(Admin(self._kafka, timeout_s=5).group_offsets, GROUP, [STATUS])
        except UnavailableError as exc:
            log.warning("how far the sink is cannot be read", error=str(exc))
            committed = {}
        partitions = len(self._reader.positions()) if self._reader is not None else 0
        place = tuple(committed.get((STATUS, index), 0) for index in range(partitions))
        self._stored = (asked_at, place)
        return place

    # ---------------------------------------------------------------- resume of a tenant's stream

    async def _resume(self, watcher: TenantWatcher, after: str) -> list[Frame]:
        """What came since the place; a reset and the place now where that cannot be had."""
        entries, outcome, place = await self._since(watcher.tenant, after)
        LIVE_RESUMES.labels(outcome).inc()
        if entries is None or place is None:
            return [reset_frame("too_old" if outcome == "too_old" else "unknown", self.place())]
        frames = list[Frame]()
        at = list(place)
        for index, entry in enumerate(entries):
            at[entry.partition] = entry.offset + 1
            fact = fact_of(entry, write_place(at))
            if fact is not None and fact.tenant == watcher.tenant and watcher.filters.match(fact):
                frames.append(self._wide_frame(fact))
            if index % 200 == 199:
                await asyncio.sleep(0)
        watcher.resumed_to = at
        return frames

    async def _since(self, tenant: str, after: str) -> tuple[list[Entry] | None, str, Place | None]:
        reader = self._reader
        assert reader is not None and reader.ring is not None
        place = read_place(after)
        here = reader.positions()
        if place is None or len(place) != len(here):
            return None, "unknown", None
        if any(map(int.__gt__, place, here)):
            # Another process may have read further than this one.
            ends = await asyncio.to_thread(end_offsets, self._kafka, len(here))
            if any(map(int.__gt__, place, ends)):
                return None, "unknown", None
        starts = reader.ring.starts()
        entries = await asyncio.to_thread(reader.ring.since, tuple(map(max, place, starts)))
        before = list[Entry]()
        outcome = "ring"
        if any(map(int.__lt__, place, starts)):
            if self._reading_back.locked():
                raise RefusedError(Refusal.BUSY, "overloaded", "too many streams are resumed from far back: try again")
            async with self._reading_back:
                found = await asyncio.to_thread(read_back, self._kafka, tenant, place, starts, self._clock())
            if found is None or entries is None:
                return None, "too_old", None
            before, outcome = found, "topic"
        if entries is None:
            return None, "too_old", None
        return [*before, *entries], outcome, place


def _drop(listed: dict[T, list[TenantWatcher]], name: T, watcher: TenantWatcher) -> None:
    watchers = listed.get(name, [])
    if watcher in watchers:
        watchers.remove(watcher)
        if not watchers:
            del listed[name]


def _count_down(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]


def _too_many(why: str) -> RefusedError:
    return RefusedError(Refusal.TOO_MANY, "too_many_watchers", why)
