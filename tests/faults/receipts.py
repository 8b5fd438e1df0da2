"""Reports of all vendors at a real `run callbacks` and a real broker, while it is killed: the final states are a model's.

    python -m tests.faults.receipts --seed 16 --receipts 100000 --kills 10

Every callback is posted three times, in any order, a third of them before our own `sent` is told. `run callbacks` is ended by kill -9 again and again.
Each vendor's own rules of repetition are played, SCALE times as fast: Mailgun tries seven times and stops at 200 and 406 alone, and does not
repeat a `delivered`; BulkSMS drops what gets a 4xx; SNS tries four times. Ends with 0 when nothing was lost that its vendor repeats, every receipt is there under one
id, and every message ends as the model says.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import made as made_records

if __name__ == "__main__":
    # Signatures have an age by the clock of `run callbacks`: what is reported here happens now. Before anything takes a copy of it.
    made_records.NOW = int(time.time() * 1000)

import aiohttp

from bench.broker import broker
from local.ports import LOOPBACK, PortBook
from local.supervisor.layout import to_toml
from runtime.kafka.consumer import BEGINNING, Consumer
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from runtime.status import message_status, status_record
from schemas.codec import codec
from schemas.events import states
from schemas.topics import RECEIPTS, REFERENCES, STATUS
from tests.support.receipt_day import ACCOUNTS, Day, report_day
from tests.support.receipts import PUBLIC, Callback, certificate
from tracking.status import rollup

SCALE = 600.0
"""How much faster than the vendor."""
AT_ONCE = 64
_MINUTE = 60.0


@dataclass(frozen=True)
class Rule:
    """How a vendor repeats: after so long each (s), until one of these answers; `drops` is what it takes for final."""

    waits: Sequence[float]
    stops: frozenset[int] | None = None
    drops: frozenset[int] = frozenset()


RULES = {
    "mailgun": Rule([m * _MINUTE for m in (5, 10, 15, 60, 120, 240)], frozenset({200, 406})),
    "bulksms": Rule([90, 180, 360, 720, *[900] * 188], drops=frozenset(range(400, 500))),
    "sendgrid": Rule([60.0 * 2**n for n in range(10)]),
    "ses": Rule([20 * SCALE / 4, 20 * SCALE / 2, 20 * SCALE]),  # three times at 20 s: too fast to be scaled
    "vonage": Rule([60.0 * 2**n for n in range(10)]),
    "onesignal": Rule([60.0 * 2**n for n in range(10)]),
}


@dataclass
class Tally:
    """What came of the posts."""

    posts: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    lost: list[Callback] = field(default_factory=list)
    """Given up by their vendor's own rule."""


def is_repeated(callback: Callback) -> bool:
    """Whether its vendor repeats it at all."""
    return not (callback.kind == "mailgun" and b'"event": "delivered"' in callback.body)


async def post(session: aiohttp.ClientSession, url: str, callback: Callback, tally: Tally) -> bool:
    """Post by the vendor's rules; whether it was taken."""
    rule = RULES[callback.kind]
    waits = list(rule.waits) if is_repeated(callback) else []
    while True:
        try:
            async with session.post(
                f"{url}/callbacks/{callback.kind}{callback.path}", data=callback.body, headers=dict(callback.headers)
            ) as answer:
                status = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError):
            status = 0
        tally.posts += 1
        tally.answers[callback.kind, status] += 1
        if status in rule.drops:
            return False
        if status in rule.stops if rule.stops is not None else 200 <= status < 300:
            return True
        if not waits:
            return False
        await asyncio.sleep(waits.pop(0) / SCALE)


@contextmanager
def certificate_file(folder: Path) -> Any:
    """SNS's certificate, for the process that would fetch it."""
    path = folder / "sns.pem"
    path.write_bytes(certificate())
    yield path


def role(settings: KafkaSettings, config: Path, port: int, folder: Path, **env: str) -> subprocess.Popen[bytes]:
    """`run callbacks`, which finds SNS's certificate in a file."""
    with (folder / "callbacks.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.receipts_role", str(folder / "sns.pem")],
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "HELIOGRAPH_CONFIG": str(config),
                "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers,
                "HELIOGRAPH_CALLBACKS__PUBLIC_URL": PUBLIC,
                "HELIOGRAPH_CALLBACKS__PORT": str(port),
                "HELIOGRAPH_CALLBACKS__DRAIN_S": "0",
                "HELIOGRAPH_METRICS__PORT": "0",
                "HELIOGRAPH_PARTITIONS": "local",
                **env,
            },
        )


def read_all(settings: KafkaSettings, topic: str, name: Any) -> list[dict[str, Any]]:
    """Every record of a topic."""
    consumer = Consumer(settings, client_id="faults", group=None, detect_eof=True)
    partitions = consumer.partitions_for_topic(topic)
    consumer.assign(dict.fromkeys(partitions, BEGINNING))
    found: list[dict[str, Any]] = []
    while not consumer.eof_partitions.issuperset(partitions):
        found += [codec(name).decode(record.value) for record in consumer.consume(5_000, 0.5)]
    consumer.close()
    return found


def our_facts(day: Day, of: Sequence[int]) -> list[ProducerRecord]:
    """What our sender says of these messages."""
    records = []
    for n in of:
        kind, sent, theirs = day.messages[n]
        at = sent["accepted_at"] + 100
        records.append(status_record(message_status(sent, "routed", now=at, attempt=0)))
        records.append(
            status_record(
                message_status(sent, "sent", now=at, attempt=1, provider=kind, provider_message_id=theirs, latency_ms=1)
            )
        )
    return records


def mismatches(day: Day, statuses: Sequence[dict[str, Any]]) -> list[str]:
    """Messages whose state or engagement is not the model's."""
    by_message: dict[str, dict[str, Any]] = {}
    for status in statuses:
        by_message.setdefault(status["message_id"], {})[status["event_id"]] = {
            **status,
            "reason": status["reason"] or "",
            "rank": states().rank.get(status["state"], -1),
            "detail": status["detail"] or "",
        }
    wrong = []
    for kind, sent, _ in day.messages:
        known = by_message.get(sent["message_id"], {})
        (shown,) = rollup(sent["notification_id"], sent["accepted_at"], list(known.values()))["messages"]
        engagement = states().engagement & {fact["state"] for fact in known.values()}
        if (shown["status"], engagement) != day.wanted[sent["message_id"]]:
            wrong.append(f"{kind} {sent['message_id']}: {shown['status']} {sorted(engagement)}")
    return wrong


async def ready(url: str, timeout_s: float = 60) -> None:
    """Until the port takes a request."""
    deadline = time.monotonic() + timeout_s
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/callbacks/sendgrid") as answer:
                    if answer.status == 405:
                        return
            except aiohttp.ClientError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError("run callbacks did not start")
            await asyncio.sleep(0.1)


async def play(
    settings: KafkaSettings, folder: Path, port: int, day: Day, rng: random.Random, kills: int
) -> tuple[Tally, int]:
    """Post everything, kill again and again; what came of it, and how many kills there were."""
    config = folder / "heliograph.toml"
    providers = [provider.model_dump(mode="json", exclude_none=True) for provider in ACCOUNTS]
    config.write_text(to_toml({"providers": providers}))
    url, tally, killed = f"http://{LOOPBACK}:{port}", Tally(), 0
    order = list(range(len(day.messages)))
    rng.shuffle(order)
    late = len(order) // 3
    producer = Producer(settings, client_id="faults")
    references = codec("Reference")
    producer.publish(
        [ProducerRecord(REFERENCES, key.encode(), references.encode(v)) for key, v in day.references.items()]
    )
    producer.publish(our_facts(day, order[late:]))
    process = role(settings, config, port, folder)
    await ready(url)
    todo = [(n, callback) for n, callback in enumerate(day.callbacks) for _ in range(3)]
    rng.shuffle(todo)
    total, done = len(todo), 0
    taken = Counter[int]()
    reached = {kill: asyncio.Event() for kill in range(1, kills + 1)}
    """Set once that part of the posts is done."""

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while todo:
            n, callback = todo.pop()
            taken[n] += await post(session, url, callback, tally)
            done += 1
            if (mark := reached.get(done * (kills + 1) // total)) is not None:
                mark.set()

    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        workers = [asyncio.create_task(work(session)) for _ in range(AT_ONCE)]
        for kill in range(1, kills + 1):
            await asyncio.wait(
                [*workers, asyncio.create_task(reached[kill].wait())], return_when=asyncio.FIRST_COMPLETED
            )
            process.kill()
            process.wait()
            killed += 1
            await asyncio.sleep(rng.uniform(0, 0.5))
            process = role(settings, config, port, folder)
            await ready(url)
        await asyncio.gather(*workers)
    tally.lost = [callback for n, callback in enumerate(day.callbacks) if not taken[n]]
    producer.publish(our_facts(day, order[:late]))
    producer.close()
    process.terminate()
    process.wait(30)
    return tally, killed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument(
        "--receipts", type=int, default=100_000, help="different ones, each of which is posted three times"
    )
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    day = report_day(rng, options.receipts // 2)
    while (events := _events(day)) < options.receipts:
        day = report_day(rng, int(len(day.messages) * options.receipts / events * 1.02))
    with tempfile.TemporaryDirectory(prefix="heliograph-receipts-") as directory:
        folder, book = Path(directory), PortBook()
        (folder / "broker").mkdir()
        with certificate_file(folder), broker(folder / "broker") as settings:
            began = time.monotonic()
            tally, killed = asyncio.run(play(settings, folder, book.reserve("callbacks"), day, rng, options.kills))
            seconds = time.monotonic() - began
            receipts = read_all(settings, RECEIPTS, "ProviderReceipt")
            wrong = mismatches(day, read_all(settings, STATUS, "DeliveryStatus"))
        book.close()
    kept = len({receipt["event_id"] for receipt in receipts})
    again = {"lost": len(tally.lost), "of them repeated by their vendor": sum(map(is_repeated, tally.lost))}
    _say(
        f"{events} receipts of {len(day.messages)} messages, {len(day.callbacks)} callbacks, {tally.posts} posts in {seconds:.0f} s, {killed} kills"
    )
    _say(f"answers: {dict(sorted(tally.answers.items()))}")
    _say(f"callbacks {again}; receipts kept {kept} of {events}, copies of them in the topic {len(receipts) - kept}")
    for line in wrong[:10]:
        _say(line)
    _say(f"messages that end otherwise than the model says: {len(wrong)} of {len(day.messages)}")
    return int(bool(tally.lost or wrong or kept != events or killed != options.kills))


def _events(day: Day) -> int:
    """Different receipts that the callbacks of a day bring."""
    return sum(
        len(callback.body.split(b'"sg_event_id"')) - 1 if callback.kind == "sendgrid" else 1
        for callback in day.callbacks
    )


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
