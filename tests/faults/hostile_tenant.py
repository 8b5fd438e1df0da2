"""A hostile tenant with a Kafka producer, an API key and odd recipients does everything at once; an honest tenant must not feel it.

    python -m tests.faults.hostile_tenant --seed 7 --hostile 20000 --honest 5000

First the honest tenant alone, then the same beside the hostile one. Ends with 0 when every honest notification ends as in the
quiet part, its p99 is at most twice the quiet one's, no process ended, no lane stood for more than a second, and the residual
of all tenants is 0. The hostile tenant sends as long as the honest tenant does: four hostile things to each honest notification,
up to a MiB each. At the default rate two cores are busy with it; at 50 a second they are full, and
then the honest wait as everybody does, for the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp
from confluent_kafka import KafkaException, Producer

from console.commands.stack import settings_for
from local.simulator.faults import Mode
from local.supervisor.state import StateFiles
from local.verification import compare
from producers.reference.keys import create_api_key
from runtime.clock import system_clock
from schemas.topics import catalogue
from tests.faults.hostile_records import MARK, RETRY_AFTER, TENANT, HostileRecords, Sent
from tests.faults.load import Load
from tests.faults.storm import say
from tests.faults.world import World, world
from tests.support.batches import CODECS, Raw, produce

SETTLE_S = 240.0
P99_RATIO = 2.0
STAND_S = 1.0
FLOOR_MS = 100.0
"""A quiet p99 below this is taken for it: on a busy machine a ratio of a few milliseconds says nothing."""
CALLS_AT_ONCE = 8
_FINE = ("sent", "delivered")


@dataclass(frozen=True)
class Plan:
    """What is sent; `per_second` is the honest tenant's rate, the hostile tenant takes as long as that lasts."""

    seed: int
    hostile: int
    honest: int
    per_second: float = 20.0
    quiet: int = 1_000
    calls: float = 0.15
    """Share of the hostile tenant's doings that are calls to the API."""


@dataclass
class Sends:
    """When each honest notification was accepted and sent (milliseconds), by lane."""

    by_lane: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def p99_ms(self) -> float:
        waits = [sent - accepted for lane in self.by_lane.values() for accepted, sent in lane]
        return quantiles(waits, n=100)[98] if len(waits) > 1 else 0.0

    def longest_stand_s(self) -> dict[str, float]:
        """Per lane, the longest time in which something waited and nothing was sent."""
        longest = {}
        for lane, pairs in self.by_lane.items():
            pairs = sorted(pairs, key=lambda pair: pair[1])
            earliest = [accepted for accepted, _ in pairs]
            for n in range(len(pairs) - 2, -1, -1):  # the first accepted of those that were sent from here on
                earliest[n] = min(earliest[n], earliest[n + 1])
            stands = [pairs[0][1] - earliest[0]] if pairs else []
            stands += [
                sent - max(before, first)
                for (_, before), (_, sent), first in zip(pairs, pairs[1:], earliest[1:], strict=False)
            ]
            longest[lane] = max(stands, default=0) / 1000
        return longest


_SENDS = """
SELECT lane, toUnixTimestamp64Milli(min(accepted_at)), toUnixTimestamp64Milli(min(occurred_at))
FROM delivery_events
WHERE state = 'sent' AND notification_id IN {ids:Array(UUID)}
GROUP BY lane, notification_id
"""


def sends(made: World, ids: Sequence[str]) -> Sends:
    found = Sends()
    for lane, accepted, sent in made.query(_SENDS, ids=list(ids)):
        found.by_lane.setdefault(lane, []).append((accepted, sent))
    return found


class Kafka:
    """The hostile tenant's producers: every codec, and transactions of which half are aborted."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        common = {"bootstrap.servers": servers, "message.max.bytes": 4 << 20, "log_level": 2, "linger.ms": 20}
        self._plain = [Producer({**common, "compression.type": name}) for name in CODECS]
        self._transactional = Producer(
            {**common, "transactional.id": f"{MARK}-{os.getpid()}", "compression.type": "lz4"}
        )
        self._transactional.init_transactions(30)
        self.refused: Counter[str] = Counter()

    def publish(self, rng: random.Random, records: Sequence[Sent]) -> None:
        if rng.random() < 0.05:
            for record in records:
                self._by_hand(rng, record)
            return
        producer = rng.choice(self._plain)
        in_transaction = rng.random() < 0.05
        if in_transaction:
            producer = self._transactional
            producer.begin_transaction()
        for record in records:
            while True:
                try:
                    producer.produce(
                        record.topic,
                        value=record.value,
                        key=record.key,
                        headers=list(record.headers),
                        timestamp=record.timestamp,
                        on_delivery=self._on_delivery,
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
                except KafkaException as exc:
                    self.refused[exc.args[0].name()] += 1
                    break
        producer.poll(0)
        if in_transaction:
            if rng.random() < 0.5:
                producer.flush(30)
                producer.abort_transaction(30)
                return
            try:
                producer.commit_transaction(30)
            except KafkaException as exc:
                self.refused[exc.args[0].name()] += 1
                producer.abort_transaction(30)

    def _by_hand(self, rng: random.Random, record: Sent) -> None:
        """With a header name that no client library would write."""
        headers = [(rng.choice((b"\xff\xfe", b"ce_id", b"")), b"v")] * rng.choice((1, 3))
        partition = rng.randrange(catalogue()[record.topic].partitions["local"])
        raw = Raw(record.key, record.value, headers, record.timestamp or None)
        try:
            produce(self._servers, record.topic, partition, [raw], rng.choice(list(CODECS)))
        except (ValueError, OSError) as exc:
            self.refused[str(exc)] += 1

    def _on_delivery(self, error: Any, _: Any) -> None:
        if error is not None:
            self.refused[error.name()] += 1

    def close(self) -> None:
        for producer in (*self._plain, self._transactional):
            producer.flush(30)


class HostileTenant:
    """Everything hostile, from two threads: records and calls, paced to end with the honest load."""

    def __init__(self, made: World, plan: Plan, api_key: str, seconds: float) -> None:
        self._made, self._plan, self._key, self._seconds = made, plan, api_key, seconds
        self.answers: Counter[str] = Counter()
        self.published = 0
        self.wrong: list[str] = []
        """Answers nobody should get."""
        self._calls = int(plan.hostile * plan.calls)
        self._threads = [
            threading.Thread(target=self._publish, name="records", daemon=True),
            threading.Thread(target=lambda: asyncio.run(self._call()), name="calls", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _publish(self) -> None:
        rng, hostile = random.Random(self._plan.seed), HostileRecords(self._plan.seed, system_clock())
        kafka = Kafka(self._made.endpoints["kafka"])
        wanted, started = self._plan.hostile - self._calls, time.monotonic()
        while self.published < wanted:
            ahead = self.published / wanted * self._seconds - (time.monotonic() - started)
            if ahead > 0:
                time.sleep(min(ahead, 0.5))
            records = hostile.records(system_clock())
            self.published += len(records)
            kafka.publish(rng, records)
        kafka.close()
        self.answers.update({f"broker: {name}": count for name, count in kafka.refused.items()})

    async def _call(self) -> None:
        endpoints, hostile = self._made.endpoints, HostileRecords(self._plan.seed + 1, system_clock())
        calls, started, done = hostile.calls(), time.monotonic(), 0

        async def work(session: aiohttp.ClientSession) -> None:
            nonlocal done
            while done < self._calls:
                done += 1
                await asyncio.sleep(max(0.0, done / self._calls * self._seconds - (time.monotonic() - started)))
                call = next(calls)
                headers = {
                    "Authorization": f"Bearer {self._key}",
                    "Content-Type": "application/json",
                    **dict(call.headers),
                }
                try:
                    async with session.request(
                        call.method,
                        endpoints["api"] + call.path,
                        data=BytesIO(call.body) if call.body else None,
                        headers=headers,
                    ) as answer:
                        raw = await answer.read()
                        self.answers[f"{answer.status}"] += 1
                        if answer.status >= 500 and answer.status != 503:  # a busy store may say so
                            self.wrong.append(
                                f"{call.method} {call.path[:80]} {call.body[:80]!r}: {answer.status} {raw[:200]!r}"
                            )
                except (aiohttp.ClientError, TimeoutError) as exc:
                    self.answers[type(exc).__name__] += 1

        slow = await self._slow_bodies(endpoints)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            await asyncio.gather(*(work(session) for _ in range(CALLS_AT_ONCE)))
        for writer in slow:
            writer.transport.abort()
        await asyncio.sleep(0.1)  # their transports end with the loop

    async def _slow_bodies(self, endpoints: dict[str, Any]) -> list[asyncio.StreamWriter]:
        """Bodies that never end, at both doors: they cost a connection, nothing else."""
        writers = []
        callbacks = endpoints["metrics"]["callbacks"].removesuffix("/metrics")
        for base, path in ((endpoints["api"], "/v1/notifications"), (callbacks, "/callbacks/twilio")):
            host, _, port = base.removeprefix("http://").partition(":")
            for _ in range(5):
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    continue
                writers.append(writer)
                writer.write(
                    f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
                    f"Content-Length: 1000\r\n\r\n{{".encode()
                )
        return writers


def misbehave(made: World) -> None:
    """The vendors do to the hostile tenant's recipients all they can."""
    for place, kind in enumerate(("smtp", "twilio", "fcm")):
        match = "+4916" if kind == "twilio" else MARK
        for mode in Mode:
            more: dict[str, Any] = {"latency_ms": 3_000} if mode is Mode.SLOW else {}
            made.fault(kind=kind, mode=mode.value, match=match, rate=0.12, times=60, **more)
        for n, word in enumerate(RETRY_AFTER):
            made.fault(
                kind=kind, mode=("429", "500")[(n + place) % 2], match=match, rate=0.1, times=3, retry_after_date=word
            )


def deaths(state_dir: Path) -> list[str]:
    """What the supervisor has buried."""
    log = StateFiles(state_dir).log("supervisor").read_text("utf-8")
    return [line for line in log.splitlines() if " died: " in line]


def honest(made: World, mark: str, count: int, plan: Plan) -> tuple[Load, int, int]:
    """Begin the honest load: (it, since, the vendors' log's end)."""
    load = Load(lambda: made.endpoints, mark, count, plan.per_second, plan.seed)
    since, since_seq = system_clock(), made.accept_count()
    load.start()
    return load, since, since_seq


def check_promises(made: World, load: Load, since: int, since_seq: int, timed: bool) -> tuple[list[str], Sends]:
    """What is wrong with the honest notifications; `timed`: nothing else keeps the machine busy."""
    ids = set(load.journal.accepted)
    made.settle(since, len(ids), SETTLE_S, say)
    made.calm(60)
    verification = made.verification(since, since_seq, ids)
    hostile = {message_id for _, message_id in verification.accepts} - {message.id for message in verification.messages}
    verification.accepts = [accept for accept in verification.accepts if accept[1] not in hostile]
    verification.mails = [mail for mail in verification.mails if mail not in hostile]
    found = [str(finding) for finding in compare(verification)]
    ended = Counter(message.state for message in verification.messages)
    if other := {state: count for state, count in ended.items() if state not in _FINE}:
        found.append(f"honest messages ended otherwise than sent: {other}")
    if flagged := sum(message.possible_duplicate for message in verification.messages):
        found.append(f"{flagged} honest messages are flagged")
    if load.journal.refused:
        found.append(f"honest requests were refused: {load.journal.refused[:3]}")
    if timed and load.journal.retried:
        found.append(f"{load.journal.retried} honest requests had to be tried again")
    return found, sends(made, sorted(ids))


def run(plan: Plan, state_dir: Path, *, timed: bool = True) -> list[str]:
    """What does not hold."""
    with world(state_dir, seconds=()) as made:
        load, since, since_seq = honest(made, f"quiet{plan.seed}", plan.quiet, plan)
        load.join()
        found, quiet = check_promises(made, load, since, since_seq, timed)
        say(
            f"quiet: {len(load.journal.accepted):,} accepted, p99 {quiet.p99_ms:.0f} ms, stood {quiet.longest_stand_s()}"
        )

        settings = settings_for(state_dir)
        key = create_api_key(
            settings.postgres.dsn.get_secret_value(), TENANT, "hostile", pepper=settings.api.key_pepper
        )
        misbehave(made)
        hostile = HostileTenant(made, plan, key, plan.honest / plan.per_second)
        load, since, since_seq = honest(made, f"beside{plan.seed}", plan.honest, plan)
        hostile.start()
        load.join()
        hostile.join()
        made.clear_faults()
        say(f"hostile tenant: {hostile.published:,} records, answers {dict(hostile.answers)}")
        more, beside = check_promises(made, load, since, since_seq, timed)
        stood = beside.longest_stand_s()
        say(f"beside: {len(load.journal.accepted):,} accepted, p99 {beside.p99_ms:.0f} ms, stood {stood}")
        found += [*more, *(f"an answer nobody should get: {each}" for each in hostile.wrong[:5])]
        if timed and beside.p99_ms > P99_RATIO * max(quiet.p99_ms, FLOOR_MS):
            found.append(
                f"the honest p99 is {beside.p99_ms:.0f} ms beside the hostile tenant, {quiet.p99_ms:.0f} ms alone"
            )
        if timed and (standing := {lane: s for lane, s in stood.items() if s > STAND_S}):
            found.append(f"lanes stood: {standing}")
        found += [f"a process ended: {line}" for line in deaths(state_dir)]
        residual = made.query(
            "SELECT tenant, finding, count(), any(notification_id) FROM v_residual GROUP BY tenant, finding"
        )
        if residual:
            found.append(f"residual: {residual}")
        dead_letters = made.query(
            "SELECT stage, reason, count() FROM dead_letters GROUP BY stage, reason ORDER BY stage"
        )
        say(f"dead letters: {dead_letters}")
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--hostile", type=int, default=20_000)
    parser.add_argument("--honest", type=int, default=5_000)
    parser.add_argument("--per-second", type=float, default=20.0)
    options = parser.parse_args()
    plan = Plan(options.seed, options.hostile, options.honest, options.per_second)
    state_dir = Path(tempfile.mkdtemp(prefix="heliograph-hostile-"))
    say(f"seed {plan.seed}: {plan.hostile:,} hostile, {plan.honest:,} honest; state in {state_dir}")
    found = run(plan, state_dir)
    for violation in found:
        say(f"VIOLATED: {violation}")
    if found:
        arguments = f"--seed {plan.seed} --hostile {plan.hostile} --honest {plan.honest} --per-second {plan.per_second}"
        say(f"again: python -m tests.faults.hostile_tenant {arguments}; the state is in {state_dir}")
        return 1
    shutil.rmtree(state_dir)
    say("no honest notification noticed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
