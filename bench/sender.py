"""What the sender's guarantees cost: `python -m bench.sender --messages 40000`.

Three senders over the same load in one run, each a fresh process with a provider that answers after --provider-ms:

    claims      the sender as it is
    no ledger   the same without writing or asking the ledger
    plain       no guarantee: send what was read, then commit

Prints messages a second of a backlog, and produce → send at 10 messages a second.
May import every layer. Never: an assertion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import senders.role
import senders.worker
from bench.broker import broker
from bench.figures import quantile
from console.commands.output import show
from runtime import ids
from runtime.kafka.consumer import Consumer
from runtime.kafka.producer import Producer
from runtime.process import Context, run_role
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings, ProviderSettings, Settings
from schemas.codec import codec
from schemas.events import LANES, ChannelMessage
from schemas.topics import dispatch_topic
from senders import outcomes
from senders.ledger import Ledger, LedgerReader
from vendors.sender import Doubt, SendResult, Sent

MODES = {"claims": "email", "no ledger": "sms", "plain": "push"}
"""Each mode has a channel, and so topics and a group, of its own."""
PER_SECOND = 10
_RECIPIENTS = 5_000


class Provider:
    """Answers after a while; ends the process after `count` messages and prints when each was sent."""

    platforms: frozenset[str] | None = None
    max_in_flight = 1_000
    repeatable_s = 0.0
    reconcile_after_s: float | None = None
    rate_per_second: float | None = None
    name = "bench"

    def __init__(self, channel: str, count: int, answers_after_s: float) -> None:
        self.channel, self._left, self._after_s = channel, count, answers_after_s
        self._sent: list[tuple[float, float]] = []
        self._cpu_s = 0.0

    async def start(self) -> None:
        """Nothing to open."""

    async def send(self, message: ChannelMessage) -> SendResult:
        if not self._sent:  # the start is not the work
            self._cpu_s = _cpu_s()
        self._sent.append((time.time(), message["routed_at"] / 1e3))
        await asyncio.sleep(self._after_s)
        self._left -= 1
        if self._left == 0:
            sys.stdout.write(json.dumps([_cpu_s() - self._cpu_s, self._sent]) + "\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGTERM)
        return Sent(message["message_id"])

    async def look_up(self, doubt: Doubt) -> SendResult:
        raise AssertionError("nothing is in doubt here")

    async def close(self) -> None:
        """Nothing to close."""


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def dispatch(channel: str, count: int) -> list[ProducerRecord]:
    """Messages of the normal lane; routed_at is now, the moment latency is counted from."""
    records = []
    for n in range(count):
        now = int(time.time() * 1000)
        message: Any = {
            "message_id": str(uuid4()),
            "notification_id": ids.notification_id(now, "bench"),
            "tenant": "bench",
            "accepted_at": now,
            "channel": channel,
            "lane": "normal",
            "address": f"r{n % _RECIPIENTS}@example.org",
            "subject": "Subject",
            "text": "A text of some length. " * 10,
            "routed_at": now,
        }
        key = f"bench:r{n % _RECIPIENTS}".encode()
        records.append(ProducerRecord(dispatch_topic(channel, "normal"), key, codec("ChannelMessage").encode(message)))
    return records


def without_ledger() -> None:
    """Take the ledger out of this process: no entries, no questions, nothing read at the start."""
    publish = Producer.publish

    def publish_without(self: Producer, records: Sequence[ProducerRecord]) -> None:
        publish(self, [record for record in records if not record.topic.startswith("notify.ledger.")])

    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    outcomes.ledger_entry = lambda *_: ProducerRecord("notify.ledger.none", None, None)
    Producer.publish = publish_without  # type: ignore[method-assign]
    Ledger.record = nothing  # type: ignore[method-assign]
    Ledger.duplicate = nothing  # type: ignore[method-assign]
    for name in ("read", "flush", "advance"):
        setattr(LedgerReader, name, nothing)


async def plain(context: Context, channel: str, provider: Provider) -> None:
    """Read, send concurrently, publish the status, commit."""
    topic = dispatch_topic(channel, "normal")
    consumer = Consumer(context.settings.kafka, client_id="plain", group=f"bench-{channel}")
    producer = Producer(context.settings.kafka, client_id="plain", linger_ms=1)
    consumer.subscribe([topic])
    context.health.started()
    while not context.stopping.is_set():
        records = await asyncio.to_thread(consumer.consume, 256, 0.1)
        messages = [cast(ChannelMessage, codec("ChannelMessage").decode(record.value)) for record in records]
        results = await asyncio.gather(*(provider.send(message) for message in messages))
        facts: list[ProducerRecord] = []
        for record, message, result in zip(records, messages, results, strict=True):
            attempt = outcomes.Attempt(message, record, now=0, provider="bench", latency_ms=0)
            made = outcomes.from_result(attempt, result, jitter=0, max_retries=5)
            facts += made.records
        await producer.send(facts)
        consumer.commit({(record.topic, record.partition): record.offset + 1 for record in records})
    consumer.close()
    producer.close()


def child(mode: str, bootstrap: str, count: int, answers_after_s: float) -> None:
    """One sender process."""
    channel = MODES[mode]
    entry: Any = ProviderSettings(name="bench", channel=channel, kind="bench")
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=bootstrap), providers=(entry,), log_level="error")
    provider = Provider(channel, count, answers_after_s)
    if mode == "plain":
        run_role("bench", settings, partial(plain, channel=channel, provider=provider), serve_health=False)
        return
    if mode == "no ledger":
        without_ledger()
    vars(senders.role)["create_senders"] = lambda *_: [provider]
    run_role("sender", settings, partial(senders.role.run_sender, channel=channel, lanes=LANES), serve_health=False)


def measure(
    settings: KafkaSettings, mode: str, count: int, provider_ms: float, per_second: float | None
) -> tuple[float, list[list[float]]]:
    """CPU seconds, and (sent at, routed at) of every message in seconds; at once, or at a rate."""
    producer = Producer(settings, client_id="bench", linger_ms=1)
    if per_second is None:
        producer.publish(dispatch(MODES[mode], count))
    command = [
        sys.executable,
        "-m",
        "bench.sender",
        "--child",
        mode,
        settings.bootstrap_servers,
        "--messages",
        str(count),
    ]
    with subprocess.Popen([*command, "--provider-ms", str(provider_ms)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if per_second is not None:
            time.sleep(8)  # until it owns its partitions
            for _ in range(count):
                producer.publish(dispatch(MODES[mode], 1))
                time.sleep(1 / per_second)
        cpu_s, sent = json.loads(process.stdout.readline())
    producer.close()
    return cpu_s, sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--provider-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, bootstrap = options.child
        child(mode, bootstrap, options.messages, options.provider_ms / 1000)
        return
    with tempfile.TemporaryDirectory() as name, broker(Path(name)) as settings:
        rates: dict[str, list[float]] = {mode: [] for mode in MODES}
        cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(options.rounds):
            for mode in MODES:
                cpu_s, sent = measure(settings, mode, options.messages, options.provider_ms, None)
                cpu[mode].append(cpu_s / len(sent) * 1e6)
                times = sorted(at for at, _ in sent)
                rates[mode].append((len(times) - 1) / (times[-1] - times[0]))
        rows: list[dict[str, Any]] = []
        for mode in MODES:
            _, trickle = measure(settings, mode, 200, options.provider_ms, PER_SECOND)
            waits = [(at - routed) * 1000 for at, routed in trickle]
            rows.append(
                {
                    "sender": mode,
                    "per_second": round(statistics.median(rates[mode])),
                    "cpu_us": round(statistics.median(cpu[mode])),
                    "of_plain": round(statistics.median(rates[mode]) / statistics.median(rates["plain"]), 2),
                    "of_no_ledger": round(statistics.median(rates[mode]) / statistics.median(rates["no ledger"]), 2),
                    "p50_ms_at_10_a_second": round(quantile(waits, 0.5), 1),
                    "p99_ms": round(quantile(waits, 0.99), 1),
                }
            )
        show(rows, as_json=False)


if __name__ == "__main__":
    main()
