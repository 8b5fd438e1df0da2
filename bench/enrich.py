"""What the router's decision costs: `python -m bench.enrich --requests 20000`.

`enrich_batch` over requests for the demo's `order-shipped` mail (subject, text and HTML, two items), to recipients with a profile; beside
it the floor: the same records decoded and two as large encoded. One process, no Kafka. Prints CPU µs a request, the
median of the rounds and the spread.
May import every layer. Never: an assertion.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Sequence

from bench import data
from console.commands.output import show
from processors.router.enrich import enrich_batch
from runtime.records import ConsumerRecord
from schemas.codec import codec


def floor(records: Sequence[ConsumerRecord]) -> None:
    """Decode each request and encode a record twice as its message is: what Avro alone costs."""
    decode, encode = codec("NotificationRequest").decode, codec("NotificationRequest").encode
    for record in records:
        request = decode(record.value)
        encode(request)
        encode(request)


def cpu_us(work: Callable[[], object], count: int) -> float:
    """CPU µs of one of `count`."""
    started = time.process_time()
    work()
    return (time.process_time() - started) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    options = parser.parse_args()
    now = int(time.time() * 1000)
    reference = data.views(options.users)
    records = data.requests(options.requests, options.users, now)
    batches = [records[n : n + options.batch] for n in range(0, len(records), options.batch)]

    def enrich() -> None:
        for batch in batches:
            enrich_batch(batch, reference, now)

    if options.profile:
        with cProfile.Profile() as profiler:
            enrich()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
        return
    enrich()
    rounds: dict[str, list[float]] = {"enrich_batch": [], "Avro alone": []}
    for _ in range(options.rounds):
        rounds["enrich_batch"].append(cpu_us(enrich, len(records)))
        rounds["Avro alone"].append(cpu_us(lambda: floor(records), len(records)))
    rows = [
        {
            "what": what,
            "cpu_us": round(statistics.median(values), 1),
            "spread": f"{min(values):.1f} to {max(values):.1f}",
        }
        for what, values in rounds.items()
    ]
    show(rows, as_json=False)


if __name__ == "__main__":
    main()
