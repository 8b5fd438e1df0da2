"""Does an account that hangs, or one that reports much, hold up another? `python -m bench.isolation [hang|receipts]`, against idle values of the same run.

hang        APNs hangs for --seconds, while FCM has messages on the same partitions
receipts    a vendor posts --rate signed reports a second while critical mails go out; idle and loaded in turn, --repeat times

(A blast of bulk mails: `python -m bench.e2e --blast 100000`.)
Latency is accepted → the vendor's own log, in milliseconds.
May import every layer. Never: an assertion.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.cases.callbacks import Posts, callbacks
from bench.environments import environment
from bench.figures import quantile
from console.commands.output import show
from local import stack
from local.ports import PortBook
from producers.publisher import Publication, Publisher
from runtime.clock import system_monotonic
from runtime.settings import KafkaSettings

Make = Callable[[int], Mapping[str, Any]]


class Vendors:
    """The simulator's faults and log."""

    def __init__(self, base: str) -> None:
        self._base = base

    def fault(self, **fault: Any) -> None:
        """Script one."""
        body = json.dumps(fault).encode()
        request = urllib.request.Request(self._base + "/faults", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()

    def clear(self) -> None:
        """Take all back."""
        urllib.request.urlopen(urllib.request.Request(self._base + "/faults", method="DELETE"), timeout=10).close()

    def accepts(self, kind: str) -> list[tuple[str, float]]:
        """(recipient, when in seconds) of every accept."""
        with urllib.request.urlopen(f"{self._base}/accepted?kind={kind}&limit=1000000", timeout=120) as answer:
            return [(entry["to"], datetime.fromisoformat(entry["at"]).timestamp()) for entry in json.load(answer)]


@contextmanager
def local_stack() -> Iterator[Mapping[str, Any]]:
    """Endpoints of a stack of its own."""
    with tempfile.TemporaryDirectory(prefix="heliograph-bench-") as name:
        started = stack.up(Path(name), detach=True)
        try:
            yield started.endpoints
        finally:
            stack.down(Path(name))
            if started.process is not None:
                started.process.wait(20)


def publisher(endpoints: Mapping[str, Any]) -> Publisher:
    return Publisher(KafkaSettings(bootstrap_servers=endpoints["kafka"]), tenant=endpoints["tenant"], source="bench")


def steady(out: Publisher, make: Make, per_second: float, seconds: float, mark: str) -> dict[str, float]:
    """Publish at a rate; recipient → when it was accepted."""
    published = {}
    started = time.time()
    for n in range(int(per_second * seconds)):
        time.sleep(max(0.0, started + n / per_second - time.time()))
        recipient = f"{mark}-{n}"
        at = time.time()
        out.publish_many([Publication({**make(n), **_to(make(n), recipient)})])
        published[recipient] = at
    return published


def _to(body: Mapping[str, Any], recipient: str) -> dict[str, Any]:
    if body["channels"] == ["email"]:
        return {"to": {"email": f"{recipient}@example.org"}}
    return {"to": {"device_tokens": [{"platform": "fcm", "token": recipient}]}}


def latencies(vendors: Vendors, kind: str, published: Mapping[str, float], patience_s: float = 60) -> list[float]:
    """Milliseconds from accepted to the vendor's log, of those that arrived."""
    deadline = system_monotonic() + patience_s
    while True:
        first: dict[str, float] = {}
        for to, at in vendors.accepts(kind):
            first.setdefault(to.partition("@")[0], at)
        if published.keys() <= first.keys() or system_monotonic() > deadline:
            return [(first[to] - at) * 1000 for to, at in published.items() if to in first]
        time.sleep(1)


def row(what: str, published: Mapping[str, float], waits: list[float]) -> dict[str, Any]:
    if not waits:
        raise SystemExit(f"{what}: none of {len(published)} messages is in the vendor's log in time")
    return {
        "during": what,
        "messages": len(published),
        "arrived": len(waits),
        "p50_ms": round(quantile(waits, 0.5), 1),
        "p99_ms": round(quantile(waits, 0.99), 1),
        "max_ms": round(max(waits), 1),
    }


def hang(seconds: float) -> list[dict[str, Any]]:
    """FCM answers, APNs hangs; every partition of the push topics carries both."""
    fcm = {"channels": ["push"], "content": {"title": "T", "body": "B"}}
    with local_stack() as endpoints, publisher(endpoints) as out:
        vendors = Vendors(endpoints["simulator"])
        steady(out, lambda n: fcm, 20, 5, "warm")
        stop = threading.Event()

        def others() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                token = f"{n:064x}"
                out.publish_many(
                    [Publication({**fcm, "to": {"device_tokens": [{"platform": "apns", "token": token}]}})]
                )
                stop.wait(0.05)

        thread = threading.Thread(target=others)
        thread.start()
        try:
            idle = steady(out, lambda n: fcm, 20, min(seconds, 60), "idle")
            before = latencies(vendors, "fcm", idle)
            vendors.fault(kind="apns", mode="slow", latency_ms=3_600_000)
            hung = steady(out, lambda n: fcm, 20, seconds, "hung")
            during = latencies(vendors, "fcm", hung)
        finally:
            stop.set()
            thread.join()
            vendors.clear()
        return _against([row("all well", idle, before), row(f"APNs hangs for {seconds:.0f} s", hung, during)])


def receipts(rate: float, seconds: float, repeat: int) -> list[dict[str, Any]]:
    """Critical mails at 20/s while a vendor reports, by one event a request."""
    mail = {"channels": ["email"], "content": {"subject": "S", "text": "B"}, "priority": "critical"}
    rows = []
    with local_stack() as endpoints, publisher(endpoints) as out, ExitStack() as started:
        directory, posts = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="heliograph-bench-"))), Posts()
        book = started.enter_context(closing(PortBook()))
        vendor = callbacks(started, KafkaSettings(bootstrap_servers=endpoints["kafka"]), posts, directory, book)
        vendors = Vendors(endpoints["simulator"])
        vendor.measure(2_000)
        steady(out, lambda n: mail, 20, 5, "warm")
        for turn in range(repeat):
            command = vendor.write(int(rate * (seconds + 2)))
            idle = steady(out, lambda n: mail, 20, seconds, f"idle{turn}")
            before = latencies(vendors, "smtp", idle)
            with subprocess.Popen([*command, "--rate", str(rate)], stdout=subprocess.PIPE, env=environment()) as load:
                time.sleep(1)
                loaded = steady(out, lambda n: mail, 20, seconds, f"loaded{turn}")
                said = json.loads(load.communicate()[0])
            during = latencies(vendors, "smtp", loaded)
            taken = f"{said['statuses'].get('204', 0) / said['seconds']:.0f} receipts a second taken"
            rows += _against([row("no receipts", idle, before), row(taken, loaded, during)])
    return rows


def _against(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    idle = rows[0]["p99_ms"]
    return [{**row, "p99_of_idle": round(row["p99_ms"] / idle, 2)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="?", choices=("hang", "receipts"), default="hang")
    parser.add_argument("--seconds", type=float, help="of each phase: 600 of hang, 20 of receipts")
    parser.add_argument("--rate", type=float, default=1_000, help="receipts a second")
    parser.add_argument("--repeat", type=int, default=5, help="of receipts: so many times idle and loaded")
    options = parser.parse_args()
    if options.case == "hang":
        show(hang(options.seconds or 600), as_json=False)
    else:
        show(receipts(options.rate, options.seconds or 20, options.repeat), as_json=False)


if __name__ == "__main__":
    main()
