"""The hooks stage: facts of notify.status.v1 to every endpoint that wants them, each at its own pace.

    1. A member of the group reads each partition once; its last facts are held for all endpoints (cursor.py).
    2. An endpoint takes what it wants, MAX_IN_FLIGHT requests at once at most. One that is slower than the rest, was away or is
       replayed reads the topic again from its position, by another consumer.
    3. Twice a second the positions that have moved are written to notify.hookpositions.v1 and acknowledged.

    | event                                          | result                                                              |
    |------------------------------------------------|---------------------------------------------------------------------|
    | the process is killed at any line              | the next owner reads the positions; at most half a second, and what |
    |                                                | was in flight, is told again under the same ids                     |
    | two processes own a partition for a moment     | both tell; both positions are true (cursor.py), the last one counts |
    | Kafka takes no position                        | written again at the next turn; delivery goes on                    |
    | partitions are revoked                         | positions are written first; given back at once, they go on         |
    | an endpoint is slow, away, or asks for a pause | its own position stays behind; no other endpoint waits              |
    | the topic has dropped what it was not told     | counted, kept with its position, said by the API                    |

Positions are in Kafka, not in the group's committed offset, which is one for all endpoints, nor in PostgreSQL, which no stage but
producers asks. What the group commits is how far the topic was read, for those who watch the lag.
May import runtime and the modules beside it. Never: what an answer means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from runtime import ids
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.dead_letters import UNDECODABLE, dead_letter_record
from runtime.errors import PublishError, UnavailableError
from runtime.health import Reason
from runtime.kafka.client import Partition
from runtime.kafka.consumer import CommitError, Consumer, FencedError
from runtime.kafka.producer import Producer
from runtime.logs import get_logger
from runtime.metrics import (
    HOOK_DELAY_SECONDS,
    HOOK_DROPPED,
    HOOK_ENDPOINTS,
    HOOK_LAG,
    HOOK_REQUESTS,
    HOOK_SECONDS,
)
from runtime.process import Context, crash_point
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.sealing import SealedError, Sealer
from schemas.codec import codec
from schemas.events import Endpoint, HookPosition
from schemas.topics import HOOK_POSITIONS, STATUS
from senders.hooks.cursor import UNPLACED, Cursor, RecentFacts, position_key
from senders.hooks.endpoint import DISABLED, FAILING, LIVE, MAX_IN_FLIGHT, SEALED, HookEndpoint, Job
from senders.hooks.facts import Chunk, chunk_of
from senders.hooks.posting import HookClient, Outcome
from senders.hooks.reading import Reader
from vendors.webhook.signature import Signer

T = TypeVar("T")
log = get_logger("hooks")

GROUP = "heliograph-hooks"
MAX_REQUESTS = 2_048
"""At once in a process; endpoints share them alike, and have one each at least."""
TURN_S = 0.25
WRITE_S = 0.5
QUIET_S = 60.0
"""How often a position is written that moved past facts which nobody wanted: only they would be read again."""
TAKE = 500
MAX_REST_S = 0.02
DRAIN_S = 10.0
MAX_FENCES = 20
START_TIMEOUT_S = 30.0


class Hooks:
    """Every method on the event loop but `_poll` and the callbacks of the group, which are on the consumer's thread."""

    def __init__(
        self,
        context: Context,
        consumer: Consumer,
        reader: Reader,
        producer: Producer,
        client: HookClient,
        sealer: Sealer,
        *,
        clock: Clock = system_clock,
        monotonic: Monotonic = system_monotonic,
    ) -> None:
        self._context, self._consumer, self._reader = context, consumer, reader
        self._producer, self._client, self._sealer = producer, client, sealer
        self._clock, self._monotonic = clock, monotonic
        self._schedule = context.settings.hooks.schedule_s
        self._consumer_thread = ThreadPoolExecutor(1, thread_name_prefix="hooks-consumer")
        self._reader_thread = ThreadPoolExecutor(1, thread_name_prefix="hooks-reader")
        self._loop = asyncio.get_running_loop()
        self.endpoints: dict[str, HookEndpoint] = {}
        self._of_tenant: dict[str, list[HookEndpoint]] = {}
        self._tenants: frozenset[str] = frozenset()
        self._recents: dict[int, RecentFacts] = {}
        self._loaded: set[int] = set()
        self._parked: dict[int, tuple[RecentFacts, dict[str, Cursor]]] = {}
        self._ends: dict[int, int] = {}  # the consumer thread's: how far each partition was handed over
        self._loads: dict[int, None] = {}
        self._unplaced: list[tuple[HookEndpoint, Cursor]] = []
        self._needs: dict[tuple[str, int], tuple[HookEndpoint, Cursor, int]] = {}
        self._reading = asyncio.Event()
        self._written: dict[tuple[str, int], tuple[HookPosition, float]] = {}
        self._writing = asyncio.Lock()
        self._committed: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._assigned = False
        self._fences = 0
        self._trouble: Reason = None

    def not_ready(self) -> Reason:
        """Why nothing is told, None while all is well."""
        if not self._assigned:
            return "waits for the partitions of its group"
        if self._trouble is not None:
            return self._trouble
        return None if self._loaded.issuperset(self._recents) else "reads the positions of its endpoints"

    async def run(self) -> None:
        """Tell until the context stops."""
        await self._on_consumer(
            partial(
                self._consumer.subscribe,
                [STATUS],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )
        )
        parts = [asyncio.create_task(part()) for part in (self._follow, self._read, self._turns)]
        stopped = asyncio.create_task(self._context.stopping.wait())
        try:
            await asyncio.wait([stopped, *parts], return_when=asyncio.FIRST_COMPLETED)
            for part in parts:
                if part.done():
                    part.result()
            for part in parts[1:]:
                part.cancel()
            self._context.stopping.set()
            await asyncio.wait([parts[0]])
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=DRAIN_S)
        finally:
            for task in (*parts, stopped, *self._tasks):
                task.cancel()
            await self._write(everything=True)
            await self._on_consumer(self._consumer.close)
            await self._loop.run_in_executor(self._reader_thread, self._reader.close)
            self._consumer_thread.shutdown()
            self._reader_thread.shutdown()

    async def _on_consumer(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._consumer_thread, call)

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def change(self, endpoint_id: str, record: Endpoint | None) -> None:
        """An endpoint is new, was changed, or is no more."""
        known = self.endpoints.get(endpoint_id)
        if record is None:
            if known is not None:
                del self.endpoints[endpoint_id]
                self._forget(known)
        elif known is None:
            endpoint = HookEndpoint(record, self._signer_of(record), self._schedule)
            self.endpoints[endpoint_id] = endpoint
            for partition in self._loaded:
                self._place(endpoint, partition)
        elif record != known.record:
            moved = record["replays"] != known.record["replays"]
            known.change(record, self._signer_of(record), self._clock())
            for partition in list(known.cursors) if moved else ():
                self._place(known, partition)
        self._of_tenant = {}
        for endpoint in self.endpoints.values():
            self._of_tenant.setdefault(endpoint.record["tenant"], []).append(endpoint)
        if self._tenants != self._of_tenant.keys():
            self._tenants = frozenset(self._of_tenant)
        if record is not None:
            self._kick(self.endpoints[endpoint_id])

    def _forget(self, endpoint: HookEndpoint) -> None:
        endpoint_id = endpoint.record["endpoint_id"]
        gone = [
            ProducerRecord(HOOK_POSITIONS, position_key(endpoint_id, number).encode(), None, (), number)
            for number in endpoint.cursors
        ]
        endpoint.cursors.clear()
        endpoint.disabled = True
        for partition in self._recents:
            self._written.pop((endpoint_id, partition), None)
        self._spawn(self._publish(gone))

    async def _publish(self, records: Sequence[ProducerRecord]) -> bool:
        try:
            await self._producer.send(records)
        except PublishError as exc:
            log.warning("records are not acknowledged", error=str(exc))
            return False
        return True

    def _signer_of(self, record: Endpoint) -> Signer | None:
        place = f"{record['tenant']}:{record['endpoint_id']}"
        sealed = [record["secret"]]
        if (until := record["previous_until"]) is not None and record["previous_secret"] and until > self._clock():
            sealed.append(record["previous_secret"])
        try:
            return Signer([self._sealer.open(each, place) for each in sealed])
        except (SealedError, ValueError) as exc:
            log.error("an endpoint's secret cannot be opened: was HELIOGRAPH_HOOKS__KEY changed?", error=str(exc))
            return None

    def _place(self, endpoint: HookEndpoint, partition: int, position: HookPosition | None = None) -> None:
        """Give it a cursor: at its position, if that is of its last replay, else where it begins."""
        record = endpoint.record
        if position is None or position["replays"] != record["replays"]:
            cursor = Cursor(record["tenant"], partition, record["replays"])
            self._unplaced.append((endpoint, cursor))
            self._reading.set()
        else:
            cursor = Cursor(record["tenant"], partition, record["replays"], position["position"], position["owed"])
            cursor.dropped, cursor.given_up = position["dropped"], position["given_up"]
            if position["endpoint_version"] == record["version"]:
                endpoint.restore(position)
        endpoint.cursors[partition] = cursor

    # -- ownership ----------------------------------------------------------------------------------------------------

    def _on_loop(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """From the consumer's thread."""
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _on_assign(self, partitions: list[Partition]) -> dict[Partition, int]:
        given = {number for _, number in partitions}
        kept = self._on_loop(partial(self._take_back, given))
        ends = {number: end for number, (_, end) in self._watermarks(given - kept.keys()).items()}
        self._on_loop(partial(self._begin, ends))
        self._ends = {**kept, **ends}
        return {(STATUS, number): offset for number, offset in self._ends.items()}

    def _watermarks(self, numbers: set[int]) -> dict[int, tuple[int, int]]:
        deadline = self._monotonic() + START_TIMEOUT_S
        while numbers:
            try:
                found = self._consumer.watermark_offsets([(STATUS, number) for number in numbers], timeout_s=5)
                return {number: offsets for (_, number), offsets in found.items()}
            except UnavailableError as exc:
                if self._monotonic() > deadline:
                    self._context.exit_now(f"cannot read the ends of the assigned partitions: {exc}")
                log.warning("trying again", error=str(exc))
                time.sleep(0.2)
        return {}

    async def _take_back(self, given: set[int]) -> dict[int, int]:
        """Go on with partitions that were revoked in the same rebalance: nobody else had them."""
        kept = {}
        for number in given & self._parked.keys():
            recent, cursors = self._parked[number]
            self._recents[number] = recent
            self._loaded.add(number)
            kept[number] = recent.end
            for endpoint_id, endpoint in self.endpoints.items():
                cursor = cursors.get(endpoint_id)
                if cursor is None or cursor.replays != endpoint.record["replays"]:
                    self._place(endpoint, number)
                else:
                    endpoint.cursors[number] = cursor
                    if cursor.read == UNPLACED:
                        self._unplaced.append((endpoint, cursor))
        self._parked = {}
        self._reading.set()
        return kept

    async def _begin(self, ends: dict[int, int]) -> None:
        for number, end in ends.items():
            self._recents[number] = RecentFacts(end)
            self._loads[number] = None
        self._assigned = True
        self._reading.set()
        log.info("partitions assigned", partitions=len(self._recents))

    def _on_revoke(self, _: list[Partition]) -> None:
        self._on_loop(self._revoked)
        self._ends = {}

    def _on_lost(self, _: list[Partition]) -> None:
        self._on_loop(self._drop)
        self._ends = {}

    async def _revoked(self) -> None:
        await self._write(everything=True)
        parked = {
            number: (recent, {i: e.cursors[number] for i, e in self.endpoints.items() if number in e.cursors})
            for number, recent in self._recents.items()
            if number in self._loaded
        }
        await self._drop()
        self._parked = parked

    async def _drop(self) -> None:
        for endpoint in self.endpoints.values():
            endpoint.cursors.clear()
        self._recents.clear()
        self._parked.clear()
        self._loaded.clear()
        self._loads.clear()
        self._unplaced.clear()
        self._needs.clear()
        self._written.clear()
        self._committed.clear()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while not self._context.stopping.is_set():
            has_room = [number for number in self._recents if not self._make_room(number)] == []
            try:
                # Without room it polls all the same: the group keeps us.
                found = await self._on_consumer(partial(self._poll, TAKE if has_room else 1))
            except FencedError as exc:
                self._fenced(exc)
                continue
            for number, chunk in found:
                self._fences = 0
                if (recent := self._recents.get(number)) is not None and recent.end == chunk.start:
                    recent.append(chunk)
                for tenant in chunk.of_tenant:
                    for endpoint in self._of_tenant.get(tenant, ()):
                        self._kick(endpoint)
            if not has_room:
                await asyncio.sleep(0.02)

    def _poll(self, most: int) -> list[tuple[int, Chunk]]:
        """What came, by partition; an end without a record (a transaction's marker) is an empty chunk."""
        records: dict[int, list[ConsumerRecord]] = {}
        for record in self._consumer.consume(most, 0.1):
            records.setdefault(record.partition, []).append(record)
        found = []
        for number, start in self._ends.items():
            end = self._consumer.position((STATUS, number))
            if end is not None and end > start:
                found.append((number, chunk_of(records.get(number, ()), start, end, self._tenants)))
                self._ends[number] = end
        return found

    def _fenced(self, error: FencedError) -> None:
        log.warning("no longer the owner", error=str(error))
        self._fences += 1
        if self._fences > MAX_FENCES:
            self._context.exit_now(f"the group refuses us for good: {error}")

    def _make_room(self, number: int) -> bool:
        """Drop a partition's oldest facts, once an endpoint that works is past them: the fastest sets the pace."""
        recent = self._recents[number]
        if not recent.is_full:
            return True
        reads = []
        for endpoint in self.endpoints.values():
            if (cursor := endpoint.cursors.get(number)) is not None:
                cursor.peek(recent, endpoint.wanted)
                if endpoint.condition is LIVE and cursor.read >= recent.start:
                    reads.append(cursor.read)
        while recent.is_full and (not reads or max(reads) >= recent.oldest_end or recent.is_overfull):
            recent.drop_oldest()
        return not recent.is_full

    async def _read(self) -> None:
        """What is to be read beside the group, one thing at a time: positions first, then where to begin, then facts."""
        while True:
            await self._reading.wait()
            self._reading.clear()
            try:
                while self._loads or self._unplaced or self._needs:
                    await self._read_one()
            except UnavailableError as exc:
                log.warning("cannot read, trying again", error=str(exc))
                self._trouble = str(exc)
                self._reading.set()
                await asyncio.sleep(0.5)
            else:
                self._trouble = None

    async def _on_reader(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._reader_thread, call)

    async def _read_one(self) -> None:
        if self._loads:
            await self._load(next(iter(self._loads)))
        elif self._unplaced:
            await self._place_some()
        else:
            await self._fill(*next(iter(self._needs.values())))

    async def _load(self, number: int) -> None:
        """The endpoints' positions in a partition, as the owner before left them."""
        recent = self._recents.get(number)
        positions, unreadable = await self._on_reader(partial(self._reader.positions, number))
        if unreadable:
            letters = [
                dead_letter_record(record, stage="hooks", reason=UNDECODABLE, error=exc, now=self._clock())
                for record, exc in unreadable
            ]
            await self._publish(letters)  # told again at the next takeover where this is not acknowledged
        if recent is None or self._recents.get(number) is not recent:  # taken away, or given anew, meanwhile
            return
        self._loads.pop(number, None)
        self._loaded.add(number)
        for endpoint_id, endpoint in self.endpoints.items():
            position = positions.get(endpoint_id)
            if position is not None and position["position"] > recent.end:
                log.error("the topic ends before a position: it was made anew", partition=number)
                position = None
            self._place(endpoint, number, position)
            if position is not None:
                self._written[endpoint_id, number] = (position, self._monotonic())
        for endpoint in self.endpoints.values():
            self._kick(endpoint)

    async def _place_some(self) -> None:
        """Where the cursors of one endpoint begin."""
        endpoint = self._unplaced[0][0]
        mine = [(e, cursor) for e, cursor in self._unplaced if e is endpoint]
        since = endpoint.record["since"]
        starts = await self._on_reader(partial(self._reader.starts, {cursor.partition for _, cursor in mine}, since))
        for pair in mine:
            if pair in self._unplaced:
                self._unplaced.remove(pair)
            if pair[1].read == UNPLACED:
                pair[1].place(starts[pair[1].partition])
        self._kick(endpoint)

    async def _fill(self, endpoint: HookEndpoint, cursor: Cursor, offset: int) -> None:
        """Read for one, and give it to all who need the same."""
        number, began = cursor.partition, self._monotonic()
        asking = (each.record["tenant"] for each, its, _ in self._needs.values() if its.partition == number)
        tenants = frozenset({endpoint.record["tenant"], *asking})
        found = await self._on_reader(partial(self._reader.facts, number, offset, tenants))
        # Decoding shares the interpreter with those who keep up: who reads a month again has half of the time at most.
        await asyncio.sleep(min(MAX_REST_S, self._monotonic() - began))
        self._needs.pop((endpoint.record["endpoint_id"], number), None)
        chunk = found.chunk
        if chunk.end <= offset:  # what the group's consumer has read is not there yet for this one
            await asyncio.sleep(0.05)
        served = [(endpoint, cursor)]
        for key, (other, its, at) in list(self._needs.items()):
            if its.partition == number and chunk.start <= at < chunk.end:
                del self._needs[key]
                served.append((other, its))
        for each, its in served:
            if each.record["tenant"] not in chunk.tenants:
                continue
            if found.low is not None and (lost := its.drop_below(found.low)):
                HOOK_DROPPED.inc(lost)
                log.error("the topic has dropped facts before an endpoint was told", offsets=lost)
            its.fill(chunk)
            self._kick(each)

    # -- telling ------------------------------------------------------------------------------------------------------

    @property
    def _limit(self) -> int:
        return max(1, min(MAX_IN_FLIGHT, MAX_REQUESTS // max(1, len(self.endpoints))))

    def _next(self, endpoint: HookEndpoint) -> Job | None:
        if self._context.stopping.is_set():
            return None
        return endpoint.next_job(self._recents, self._clock(), self._limit, partial(self._need, endpoint))

    def _need(self, endpoint: HookEndpoint, cursor: Cursor, offset: int) -> None:
        self._needs.setdefault((endpoint.record["endpoint_id"], cursor.partition), (endpoint, cursor, offset))
        self._reading.set()

    def _kick(self, endpoint: HookEndpoint) -> None:
        """Begin what it can be told now."""
        while (job := self._next(endpoint)) is not None:
            self._spawn(self._tell(endpoint, job))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("crashed", exc_info=error)
            self._context.exit_now(f"an internal error: {type(error).__name__}")

    async def _tell(self, endpoint: HookEndpoint, job: Job | None) -> None:
        """Requests one after the other, as long as there is something to tell."""
        while job is not None:
            fact, record, signer = job.fact, endpoint.record, endpoint.signer
            began = self._monotonic()
            if signer is None:
                outcome = Outcome("unreachable", SEALED)
            else:
                webhook_id = ids.hook_id(record["endpoint_id"], fact.event_id)
                outcome = await self._client.post(record["url"], signer, webhook_id, fact.body)
            crash_point("after_hook", self._context.settings.crash_at)
            now = self._clock()
            HOOK_REQUESTS.labels(outcome.kind).inc()
            HOOK_SECONDS.observe(self._monotonic() - began)
            if outcome.kind == "delivered" and job.owed is None and endpoint.condition is LIVE:
                HOOK_DELAY_SECONDS.observe(max(0, now - fact.timestamp) / 1000)
            endpoint.settle(job, outcome, now)
            job = endpoint.following(job, now) or self._next(endpoint)

    # -- positions ----------------------------------------------------------------------------------------------------

    async def _turns(self) -> None:
        write_at = 0.0
        while True:
            await asyncio.sleep(TURN_S)
            now = self._clock()
            for endpoint in list(self.endpoints.values()):
                until = endpoint.record["previous_until"]
                if until is not None and until <= now and endpoint.signs_twice:
                    endpoint.signer, endpoint.signs_twice = self._signer_of(endpoint.record), False
                self._kick(endpoint)
            if self._monotonic() >= write_at:
                write_at = self._monotonic() + WRITE_S
                await self._write()
                await self._commit()
                self._measure()

    async def _write(self, *, everything: bool = False) -> None:
        """Write down the positions that have moved; those of quiet endpoints seldom."""
        async with self._writing:
            records, written = [], []
            now, at = self._clock(), self._monotonic()
            for endpoint_id, endpoint in self.endpoints.items():
                for number, cursor in endpoint.cursors.items():
                    if cursor.read == UNPLACED:
                        continue
                    recent = self._recents[number]
                    cursor.peek(recent, endpoint.wanted)
                    position = endpoint.position_of(cursor, recent.end, now)
                    last = self._written.get((endpoint_id, number))
                    if last is not None and not _is_worth_writing(
                        position, last[0], cursor.told or everything or at - last[1] > QUIET_S
                    ):
                        continue
                    key = (endpoint_id, number)
                    records.append(
                        ProducerRecord(
                            HOOK_POSITIONS,
                            position_key(endpoint_id, number).encode(),
                            codec("HookPosition").encode(position),
                            (),
                            number,
                        )
                    )
                    written.append((key, position))
                    cursor.told = False
            if not records:
                return
            if await self._publish(records):
                for key, position in written:
                    self._written[key] = (position, at)
            else:
                for (endpoint_id, number), _ in written:
                    if (e := self.endpoints.get(endpoint_id)) is not None and number in e.cursors:
                        e.cursors[number].told = True

    async def _commit(self) -> None:
        ends = {number: recent.end for number, recent in self._recents.items()}
        moved = {number: end for number, end in ends.items() if self._committed.get(number) != end}
        if not moved:
            return
        try:
            await self._on_consumer(
                partial(self._consumer.commit, {(STATUS, number): end for number, end in moved.items()})
            )
        except FencedError as exc:
            self._fenced(exc)
        except CommitError as exc:
            log.debug("not committed yet", error=str(exc))
        else:
            self._committed.update(moved)

    def _measure(self) -> None:
        count, lag = dict.fromkeys((LIVE, FAILING, DISABLED), 0), dict.fromkeys((LIVE, FAILING, DISABLED), 0)
        for endpoint in self.endpoints.values():
            condition = endpoint.condition
            count[condition] += 1
            behind = sum(
                max(0, self._recents[number].end - cursor.position)
                for number, cursor in endpoint.cursors.items()
                if cursor.read != UNPLACED
            )
            lag[condition] = max(lag[condition], behind)
        for condition in count:
            HOOK_ENDPOINTS.labels(condition).set(count[condition])
            HOOK_LAG.labels(condition).set(lag[condition])


def _is_worth_writing(position: HookPosition, last: HookPosition, moved_counts: bool) -> bool:
    """Whether a position says more than the last one that was written."""
    for name, value in position.items():
        if name in ("recorded_at", "behind") or (name == "position" and not moved_counts):
            continue
        if value != last[name]:  # type: ignore[literal-required]
            return True
    return False
