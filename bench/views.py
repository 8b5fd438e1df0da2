"""The preferences view at size: `python -m bench.views --users 1000000`.

Publishes that many recipient profiles to a broker of its own, then starts the view in a fresh process per backend and
prints time to ready, resident memory, disk, the same after a restart, and the cost of one lookup.
May import runtime and local. Never: an assertion.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.broker import broker
from console.commands.output import show
from runtime.kafka.producer import Producer
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings, ViewSettings
from runtime.views import View, open_store
from schemas.codec import codec
from schemas.events import RecipientProfile
from schemas.topics import RECIPIENTS

_BATCH = 20_000


def profile(n: int) -> RecipientProfile:
    """A profile of about 260 bytes: two addresses, one device, a few preferences."""
    return {
        "tenant": "default",
        "user_id": f"user-{n:08d}",
        "name": f"Recipient Number {n}",
        "email": f"user{n:08d}@example.org",
        "phone": f"+4915{n:09d}",
        "locale": "de-AT",
        "time_zone": "Europe/Vienna",
        "devices": [{"platform": "fcm", "token": f"token-{n:08d}-" + "x" * 80, "subscription": None}],
        "channels": {"sms": False} if n % 20 == 0 else {},
        "categories": {"marketing": {"email": n % 3 != 0, "push": True}},
        "version": 1,
        "updated_at": 1_790_000_000_000,
    }


def publish(settings: KafkaSettings, users: int) -> float:
    """Publish the profiles; seconds."""
    producer, encode = Producer(settings, client_id="bench"), codec("RecipientProfile").encode
    started = time.perf_counter()
    for first in range(0, users, _BATCH):
        producer.publish(
            [
                ProducerRecord(RECIPIENTS, f"default:user-{n:08d}".encode(), encode(profile(n)))
                for n in range(first, min(users, first + _BATCH))
            ]
        )
    producer.close()
    return time.perf_counter() - started


def measure(bootstrap: str, backend: str, directory: Path, users: int) -> dict[str, float]:
    """In a fresh process: start the view and report. A store on disk estimates its keys; `found` is of those that must be there."""
    process = psutil.Process()
    before = process.memory_info().rss
    store = open_store(ViewSettings(backend=backend, directory=directory), "bench", RECIPIENTS)  # type: ignore[arg-type]
    view: View[RecipientProfile] = View(KafkaSettings(bootstrap_servers=bootstrap), RECIPIENTS, store=store)
    started, cpu = time.perf_counter(), time.process_time()
    view.start()
    while view.not_ready():
        time.sleep(0.01)
    ready_s, cpu = time.perf_counter() - started, time.process_time() - cpu
    rng = random.Random(7)
    keys = [f"default:user-{rng.randrange(users):08d}" for _ in range(20_000)]
    started = time.perf_counter()
    found = sum(view.get(key) is not None for key in keys)
    lookup_us = (time.perf_counter() - started) / len(keys) * 1e6
    rss, held = process.memory_info().rss - before, len(view)
    view.close()
    disk = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) if directory.exists() else 0
    return {
        "keys": held,
        "ready_s": round(ready_s, 2),
        "cpu_us": round(cpu / users * 1e6, 2),
        "rss_mib": rss >> 20,
        "disk_mib": disk >> 20,
        "lookup_us": round(lookup_us, 1),
        "found": found / len(keys),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        bootstrap, backend, directory, users = arguments.measure
        sys.stdout.write(json.dumps(measure(bootstrap, backend, Path(directory), int(users))))
        return
    with tempfile.TemporaryDirectory() as name, broker(Path(name)) as settings:
        seconds = publish(settings, arguments.users)
        sys.stdout.write(f"published {arguments.users:,} profiles in {seconds:.1f} s\n")
        rows = []
        for backend in ("memory", "rocksdb"):
            for start in ("first", "restart"):
                command = [sys.executable, "-m", "bench.views", "--measure", settings.bootstrap_servers, backend]
                answer = subprocess.run(
                    [*command, str(Path(name) / backend), str(arguments.users)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                rows.append({"backend": backend, "start": start, **json.loads(answer.stdout.splitlines()[-1])})
        show(rows, as_json=False)


if __name__ == "__main__":
    main()
