"""The timers stage at size: `python -m bench.timers --timers 1000000`.

Publishes that many timers due in a month to a broker of its own, with a few that are due already in every partition. Then it
starts `run timers` and prints the seconds until all of those have fired, and resident memory; the same after SIGTERM and
after SIGKILL; and, while the rest is pending, how late a steady share of further timers comes out of its target topic.
May import runtime and local. Never: an assertion.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from uuid import UUID

import psutil

from bench.broker import broker
from console.commands.output import show
from runtime import ids
from runtime.clock import system_monotonic
from runtime.kafka.consumer import BEGINNING, Consumer
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from schemas.codec import codec
from schemas.events import NotificationRequest, Timer
from schemas.topics import TIMERS, requests_topic

_BATCH = 20_000
_MONTH_MS = 30 * 86_400_000
_MARKERS = 100
_TARGET = requests_topic("bulk")


def timer(name: str, due_at: int, rng: random.Random) -> ProducerRecord:
    """A scheduled request of about 400 bytes whose key says when it is due."""
    notification_id = ids.notification_id(due_at - _MONTH_MS, "default", name)
    request: NotificationRequest = {
        "notification_id": notification_id,
        "tenant": "default",
        "accepted_at": due_at - _MONTH_MS,
        "user_id": name,
        "template_id": "order-shipped",
        "data": b'{"order": "A1", "name": "Recipient Number 1"}',
        "channels": ["email"],
    }
    timer_id = str(UUID(int=rng.getrandbits(128), version=5))
    record: Timer = {
        "timer_id": timer_id,
        "due_at": due_at,
        "purpose": "schedule",
        "topic": _TARGET,
        "key": f"{name}:{due_at}".encode(),
        "headers": [
            {"name": "ce_id", "value": notification_id.encode()},
            {"name": "traceparent", "value": b"00-" + b"a" * 52},
        ],
        "value": codec("NotificationRequest").encode(request),
    }
    return ProducerRecord(TIMERS, timer_id.encode(), codec("Timer").encode(record))


def _now() -> int:
    return time.time_ns() // 1_000_000


def publish(producer: Producer, count: int, rng: random.Random) -> float:
    """Publish timers due in a month; seconds."""
    started, due = time.perf_counter(), _now() + _MONTH_MS
    for first in range(0, count, _BATCH):
        names = range(first, min(count, first + _BATCH))
        producer.publish([timer(f"user-{n:08d}", due + n, rng) for n in names])
    return time.perf_counter() - started


class Fired:
    """When what was fired came out of its topic."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._consumer = Consumer(settings, client_id="bench-fired", group=None, fetch_wait_ms=50)
        self._consumer.assign(dict.fromkeys(self._consumer.partitions_for_topic(_TARGET), BEGINNING))

    def take(self, prefix: str, count: int, timeout_s: float) -> tuple[list[int], float]:
        """How late each of `count` came (ms), and when the last of them came (monotonic)."""
        late: dict[bytes, int] = {}
        deadline, last = system_monotonic() + timeout_s, system_monotonic()
        while len(late) < count and system_monotonic() < deadline:
            for record in self._consumer.consume(5_000, 0.2):
                key = record.key or b""
                if key.startswith(prefix.encode()) and key not in late:
                    late[key], last = _now() - int(key.rpartition(b":")[2]), system_monotonic()
        if len(late) < count:
            raise SystemExit(f"{count - len(late)} of {count} timers did not fire in {timeout_s:.0f} s")
        return sorted(late.values()), last

    def close(self) -> None:
        self._consumer.close()


def start_role(settings: KafkaSettings, directory: Path) -> subprocess.Popen[bytes]:
    """`heliograph run timers` against the broker."""
    with (directory / "timers.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "console.cli", "run", "timers"],
            stdout=log,
            stderr=log,
            env={**os.environ, "HELIOGRAPH_KAFKA__BOOTSTRAP_SERVERS": settings.bootstrap_servers},
        )


def trickle(producer: Producer, rate: int, seconds: int, rng: random.Random, mark: str = "late-") -> None:
    """Publish `rate` timers a second, due two to three seconds later."""
    started = system_monotonic()
    for tick in range(seconds * 10):
        now = _now()
        many = range(rate // 10)
        producer.publish([timer(f"{mark}{tick}-{n}", now + 2_000 + rng.randrange(1_000), rng) for n in many])
        time.sleep(max(0.0, started + (tick + 1) / 10 - system_monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timers", type=int, default=1_000_000)
    parser.add_argument("--rate", type=int, default=500, help="timers due per second while the rest is pending")
    parser.add_argument("--seconds", type=int, default=30)
    arguments = parser.parse_args()
    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as name, broker(Path(name)) as settings:
        producer, fired = Producer(settings, client_id="bench"), Fired(settings)
        seconds = publish(producer, arguments.timers, rng)
        sys.stdout.write(f"published {arguments.timers:,} timers in {seconds:.1f} s\n")
        role: subprocess.Popen[bytes] | None = None
        rows: list[dict[str, object]] = []
        try:
            for start, sign in (("first", None), ("restart", signal.SIGTERM), ("after kill -9", signal.SIGKILL)):
                if role is not None and sign is not None:
                    role.send_signal(sign)
                    role.wait()
                due = _now()
                producer.publish([timer(f"{start}-{n}", due, rng) for n in range(_MARKERS)])
                began = system_monotonic()
                role = start_role(settings, Path(name))
                _, last = fired.take(f"{start}-", _MARKERS, 300)
                memory = psutil.Process(role.pid).memory_info().rss
                rows.append({"start": start, "fired_after_s": round(last - began, 1), "rss_mib": memory >> 20})
            show(rows, as_json=False)
            assert role is not None
            before = psutil.Process(role.pid).cpu_times()
            feeder = threading.Thread(target=trickle, args=(producer, arguments.rate, arguments.seconds, rng))
            feeder.start()
            count = arguments.rate // 10 * 10 * arguments.seconds
            late, _ = fired.take("late-", count, arguments.seconds + 60)
            feeder.join()
            after = psutil.Process(role.pid).cpu_times()
            show(
                [
                    {
                        "fired": count,
                        "per_s": arguments.rate,
                        "early": sum(ms < 0 for ms in late),
                        "late_p50_ms": late[count // 2],
                        "late_p99_ms": late[count * 99 // 100],
                        "late_max_ms": late[-1],
                        "cpu_share": round(
                            (after.user + after.system - before.user - before.system) / arguments.seconds, 2
                        ),
                        "rss_mib": psutil.Process(role.pid).memory_info().rss >> 20,
                    }
                ],
                as_json=False,
            )
        finally:
            if role is not None:
                role.terminate()
                role.wait(30)
            fired.close()
            producer.close()


if __name__ == "__main__":
    main()
