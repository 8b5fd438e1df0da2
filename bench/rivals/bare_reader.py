"""The least that reads a compacted topic into memory: `python -m bench.rivals.bare_reader BOOTSTRAP TOPIC COUNT`.

Five thousand records at a time into a dictionary, nothing decoded or checked. Prints keys, seconds, CPU µs a key and the growth of resident memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

from confluent_kafka import Consumer


def _rss_mib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


def main(bootstrap: str, topic: str, count: int) -> None:
    before, began, cpu = _rss_mib(), time.perf_counter(), time.process_time()
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"bare-{os.getpid()}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    held: dict[bytes, bytes] = {}
    while len(held) < count:
        held.update((it.key(), it.value()) for it in consumer.consume(5_000, 0.2) if it.error() is None)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    found = {
        "keys": len(held),
        "ready_s": seconds,
        "cpu_us": cpu / count * 1e6,
        "rss_mib": _rss_mib() - before,
        "found": 1,
    }
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # leaving the group is not what is measured


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
