"""What a sender holds in memory while large mails are queued: `python -m bench.backlog --messages 200000 --kbytes 60`.

A backlog on the four partitions of a lane in the local profile, and one sender process whose provider answers after
--provider-ms. Prints the largest resident size of the process, the most it held of records, and mails a second.
May import every layer. Never: an assertion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import senders.role
from bench.broker import broker
from console.commands.output import show
from runtime import ids
from runtime.clock import system_monotonic
from runtime.kafka.producer import Producer
from runtime.process import run_role
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import KafkaSettings, ProviderSettings, Settings
from schemas.codec import codec
from schemas.events import LANES, ChannelMessage
from schemas.topics import dispatch_topic
from senders.worker import Worker
from vendors.sender import Doubt, SendResult, Sent

CHANNEL = "email"
_LAYOUT = "<tr><td style='padding: 4px; font-family: sans-serif'>&nbsp;</td></tr>\n"


class Provider:
    """Answers after a while; ends the process after `count` messages and prints what it cost."""

    platforms: frozenset[str] | None = None
    max_in_flight = 1_000
    repeatable_s = 0.0
    reconcile_after_s: float | None = None
    rate_per_second: float | None = None
    name = "bench"
    channel = CHANNEL

    def __init__(self, count: int, answers_after_s: float) -> None:
        self._left, self._after_s = count, answers_after_s
        self._began = 0.0
        self.held = 0

    async def start(self) -> None:
        """Nothing to open."""

    async def send(self, message: ChannelMessage) -> SendResult:
        self._began = self._began or system_monotonic()
        await asyncio.sleep(self._after_s)
        self._left -= 1
        if self._left == 0:
            peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sys.stdout.write(json.dumps([peak_kib, self.held, system_monotonic() - self._began]) + "\n")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGTERM)
        return Sent(message["message_id"])

    async def look_up(self, doubt: Doubt) -> SendResult:
        raise AssertionError("nothing is in doubt here")

    async def close(self) -> None:
        """Nothing to close."""


def mails(first: int, count: int, size: int, lane: str) -> list[ProducerRecord]:
    """Half of each is a layout that all share, half are words of its own, as in real mails."""
    words = [f"{random.getrandbits(40):x}"[: 3 + n % 8] for n in range(4_000)]
    text = " ".join(random.choices(words, k=100_000))
    records = []
    for n in range(first, first + count):
        now = int(time.time() * 1000)
        start = random.randrange(len(text) - size)
        own = text[start : start + size // 2]
        layout = _LAYOUT * (max(0, size - len(own)) // len(_LAYOUT))
        message: Any = {
            "message_id": str(uuid4()),
            "notification_id": ids.notification_id(now, "bench"),
            "tenant": "bench",
            "accepted_at": now,
            "channel": CHANNEL,
            "lane": lane,
            "address": f"r{n}@example.org",
            "subject": "Subject",
            "html": layout + own,
            "routed_at": now,
        }
        value = codec("ChannelMessage").encode(message)
        records.append(ProducerRecord(dispatch_topic(CHANNEL, lane), f"bench:r{n}".encode(), value))
    return records


def child(bootstrap: str, count: int, answers_after_s: float, read_ahead_mib: int) -> None:
    """The sender process."""
    entry: Any = ProviderSettings(name="bench", channel=CHANNEL, kind="bench")
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=bootstrap),
        providers=(entry,),
        log_level="error",
        sender={"read_ahead_mib": read_ahead_mib},  # type: ignore[arg-type]
    )
    provider = Provider(count, answers_after_s)
    take = Worker._take

    def taken(self: Worker, records: list[ConsumerRecord]) -> None:
        take(self, records)
        provider.held = max(provider.held, self.buffered_bytes)

    Worker._take = taken  # type: ignore[method-assign,assignment]
    vars(senders.role)["create_senders"] = lambda *_: [provider]
    run_role("sender", settings, partial(senders.role.run_sender, channel=CHANNEL, lanes=LANES), serve_health=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--kbytes", type=int, default=60)
    parser.add_argument("--provider-ms", type=float, default=20.0)
    parser.add_argument("--read-ahead-mib", type=int, nargs="+", default=[64])
    parser.add_argument("--sent", type=int, default=20_000, help="how many of them are waited for, per setting")
    parser.add_argument("--lane", choices=LANES, default="bulk")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.sent, options.provider_ms / 1000, options.read_ahead_mib[0])
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, broker(Path(name)) as settings:
        producer = Producer(settings, client_id="bench", linger_ms=5)
        for first in range(0, options.messages, 1_000):
            producer.publish(mails(first, min(1_000, options.messages - first), options.kbytes * 1_000, options.lane))
        producer.close()
        for read_ahead_mib in options.read_ahead_mib:
            command = [
                sys.executable,
                "-m",
                "bench.backlog",
                "--child",
                settings.bootstrap_servers,
                "--sent",
                str(options.sent),
                "--provider-ms",
                str(options.provider_ms),
                "--read-ahead-mib",
                str(read_ahead_mib),
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                peak_kib, held, seconds = json.loads(process.stdout.readline())
            rows.append(
                {
                    "read_ahead_mib": read_ahead_mib,
                    "peak_rss_mib": peak_kib >> 10,
                    "held_mib": round(held / (1 << 20), 1),
                    "mails_per_second": round(options.sent / seconds),
                }
            )
    show(rows, as_json=False)


if __name__ == "__main__":
    main()
