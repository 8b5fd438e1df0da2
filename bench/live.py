"""What watching costs: `python -m bench.live [--watchers 10000] [--rate 1000] [--seconds 30]`.

A whole stack; to its one API process so many streams of server-sent events, a notification each, from one process that reads them; then
facts at a steady rate into the topic, each for one of them. Prints what a stream takes of the API's memory, the time to connect all, how
long a fact takes from its publisher to the reader (and, by the API's own histogram, from the broker to the connection), p99 of ingest with
and without the streams, how long a reader that stops reading is kept, and the time from SIGTERM to the end of the last stream.
May import bench, tests.support. Never: an assertion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop
from pydantic import SecretStr

from bench.e2e import Bench, running
from bench.environments import environment
from bench.figures import quantile
from bench.load import write_requests
from bench.observe import until
from bench.processes import cpu_s, pss_mib
from console.commands.output import show
from producers.reference.keys import create_api_key
from runtime import ids
from runtime.clock import system_clock
from runtime.kafka.producer import Producer
from runtime.settings import KafkaSettings
from runtime.status import fact, rfc3339, status_record

PATH = "/v1/notifications"
WATCHERS, RATE, SECONDS = 10_000, 1_000, 30
OF_A_TENANT = 2_000
"""Watchers that a tenant may have in a process."""
CONNECT_AT_ONCE = 256
BULK = 1_000
INGEST_ROUNDS = 3
INGEST_REQUESTS = 3_000
LATER_MS = 20 * 3_600_000
STUCK = "stuck"
_OCCURRED = re.compile(rb'"occurred_at":"([^"]+)"')


# ---------------------------------------------------------------- the process that watches


class Peer(asyncio.Protocol):
    """A stream. Pieces of it are looked at for status events, whose facts say when they were published."""

    def __init__(self, readers: Readers, request: bytes) -> None:
        self._readers, self._request = readers, request
        self._began = False
        self._left = b""
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]  # uvloop's are no asyncio.Transport

    def data_received(self, data: bytes) -> None:
        *events, self._left = (self._left + data).split(b"\n\n")
        for event in events:
            # Each is in a chunk of its own, whose length stands before it.
            if b"event: status" in event:
                self._readers.told(event)
            elif b"event: snapshot" in event and not self.begun.done():
                self.begun.set_result(None)
            elif event.startswith(b"HTTP/1.1 ") and b" 200 " not in event[:13]:
                self._readers.refused += 1

    def connection_lost(self, error: Exception | None) -> None:
        self._readers.last_end = time.time()
        self._readers.open -= 1
        if not self.begun.done():
            self.begun.set_exception(ConnectionError("ended before its snapshot"))


@dataclass
class Readers:
    """All of them."""

    delays: list[float] = field(default_factory=list)
    facts: int = 0
    open: int = 0
    refused: int = 0
    last_end: float = 0.0

    def told(self, event: bytes) -> None:
        self.facts += 1
        if found := _OCCURRED.search(event):
            at = datetime.fromisoformat(found[1].decode()).timestamp()
            self.delays.append((time.time() - at) * 1_000)


async def read(url: str, streams: Sequence[tuple[str, str]]) -> None:
    """Connect all, say so, then answer each line of stdin with what was seen since the last."""
    parts, readers = urlsplit(url), Readers()
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(CONNECT_AT_ONCE)

    async def connect(nid: str, key: str) -> None:
        head = f"GET /v1/stream?notification_id={nid} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n\r\n"
        async with gate:
            made = await loop.create_connection(
                lambda: Peer(readers, head.encode()), parts.hostname or "", parts.port or 80
            )
            readers.open += 1
            await made[1].begun

    began = time.monotonic()
    await asyncio.gather(*(connect(nid, key) for nid, key in streams))
    _say({"connected_s": time.monotonic() - began})
    asked: asyncio.Queue[str] = asyncio.Queue()

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(asked.put_nowait, line.strip())

    threading.Thread(target=listen, daemon=True).start()
    while (await asked.get()) != "end":
        delays, readers.delays = readers.delays, []
        facts, readers.facts = readers.facts, 0
        some = delays or [0.0]
        _say(
            {
                "facts": facts,
                "open": readers.open,
                "refused": readers.refused,
                "last_end": readers.last_end,
                "p50_ms": quantile(some, 0.5),
                "p99_ms": quantile(some, 0.99),
            }
        )


def _say(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@contextmanager
def reading(url: str, streams: Path) -> Iterator[subprocess.Popen[str]]:
    """The process that watches."""
    command = [sys.executable, "-m", "bench.live", "--read", url, "--streams", str(streams)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str], ask: bool = True) -> dict[str, Any]:
    """Its next line."""
    assert process.stdin is not None and process.stdout is not None
    if ask:
        process.stdin.write("\n")
        process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline() or '{"error": "it has ended"}')
    return answer


# ---------------------------------------------------------------- what is measured


class Api:
    """The API process of a stack, and tenants of its own."""

    def __init__(self, bench: Bench, directory: Path) -> None:
        self.url, self.pid = str(bench.endpoints["api"]), bench.processes["api"]
        self._dsn, self._directory = str(bench.endpoints["postgres"]), directory
        self.kafka = KafkaSettings(bootstrap_servers=bench.endpoints["kafka"])
        raw = Path(f"/proc/{self.pid}/environ").read_text("utf-8")
        variables = dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)
        self._pepper = SecretStr(variables["HELIOGRAPH_API__KEY_PEPPER"])

    def key(self, tenant: str) -> str:
        return create_api_key(self._dsn, tenant, "bench", pepper=self._pepper)

    def scheduled(self, key: str, count: int) -> list[str]:
        """Ids of notifications that wait for a day: nothing happens to them by itself."""
        found: list[str] = []
        for start in range(0, count, BULK):
            part = min(BULK, count - start)
            body = json.dumps({"notifications": [_later(start + n) for n in range(part)]}).encode()
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            request = urllib.request.Request(f"{self.url}{PATH}/bulk", body, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                found += [one["id"] for one in json.load(answer)["results"]]
        return found

    def ingest_p99(self, key: str) -> float:
        """ms, of a few connections that send what waits for a day: the median of some rounds."""
        found = []
        for _ in range(INGEST_ROUNDS):
            file = self._directory / "ingest.requests"
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            posts = ((PATH, headers, json.dumps(_later(n)).encode()) for n in range(INGEST_REQUESTS))
            write_requests(file, self.url, posts)
            command = [sys.executable, "-m", "bench.load", self.url, "--file", str(file), "--connections", "8"]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
            found.append(float(json.loads(done.stdout)["p99_ms"]))
        return statistics.median(found)

    def metrics(self, name: str) -> dict[str, float]:
        """Series of one name, by what follows it."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        rows = [line.removeprefix(name).rpartition(" ") for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return {labels: float(value) for labels, _, value in rows}

    def watchers(self) -> int:
        return int(self.metrics("heliograph_live_watchers")[""])


def _later(number: int) -> dict[str, Any]:
    return {
        "to": {"email": f"l{number}@example.org"},
        "content": {"subject": "S", "text": "hello"},
        "send_at": rfc3339(system_clock() + LATER_MS),
    }


def bucket_of(before: Mapping[str, float], after: Mapping[str, float], share: float) -> float:
    """The upper bound, in ms, of the bucket of a histogram in which a share of what was new is reached."""
    new = {labels: after[labels] - before.get(labels, 0.0) for labels in after}
    bounds = sorted((float(re.findall(r'le="([^"]+)"', labels)[0]), count) for labels, count in new.items())
    return next(bound for bound, count in bounds if count >= share * bounds[-1][1]) * 1_000


class Publishing(threading.Thread):
    """Facts at a steady rate: one for a watcher in turn, and as many again as `wide` of a tenant that is watched whole."""

    def __init__(self, kafka: KafkaSettings, watched: Sequence[tuple[str, str]], rate: float, seconds: float) -> None:
        super().__init__(daemon=True)
        self._kafka, self._watched, self._rate, self._seconds = kafka, watched, rate, seconds
        self.published = 0

    def run(self) -> None:
        producer = Producer(self._kafka, client_id="bench", linger_ms=1)
        began = time.monotonic()
        while (spent := time.monotonic() - began) < self._seconds:
            due = int(spent * self._rate)
            if due > self.published:
                producer.start([self._fact(number) for number in range(self.published, due)])
                self.published = due
            time.sleep(0.005)
        producer.publish([self._fact(self.published)])
        self.published += 1
        producer.close()

    def _fact(self, number: int) -> Any:
        tenant, nid = self._watched[number * 7 % len(self._watched)]
        event_id = ids.event_id(nid, "routed", 1, str(number))
        about: Any = {"correlation_id": "c-1", "recipient": f"u{number}"}
        return status_record(fact(event_id, nid, tenant, "normal", "routed", system_clock(), about))


class StuckReader(threading.Thread):
    """A tenant's stream that is begun and not read, while so much happens to the tenant that buffers fill."""

    def __init__(self, api: Api) -> None:
        super().__init__(daemon=True)
        self._api = api
        self.kept_s: float | None = None
        """From its last read until the API has forgotten it."""
        self._key = api.key(STUCK)

    def run(self) -> None:
        api, host = self._api, urlsplit(self._api.url)
        others = api.watchers()
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            peer.connect((host.hostname, host.port))
            peer.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {self._key}\r\n\r\n".encode())
            peer.recv(1_000)
            until(lambda: api.watchers() == others + 1, "a further stream begins", 30)
            began = time.monotonic()
            now, producer = system_clock(), Producer(api.kafka, client_id="bench")
            for start in range(0, 16_000, 1_000):
                nids = [ids.notification_id(now, STUCK, str(start + n)) for n in range(1_000)]
                about: Any = {"correlation_id": "c" * 200, "recipient": "u"}
                producer.publish(
                    [
                        status_record(fact(ids.event_id(n, "routed"), n, STUCK, "bulk", "routed", now, about))
                        for n in nids
                    ]
                )
                time.sleep(0.1)
            producer.close()
            while time.monotonic() - began < 120:
                if api.watchers() <= others:
                    self.kept_s = time.monotonic() - began
                    return
                time.sleep(0.5)


def measure(bench: Bench, directory: Path, options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """A row of the table."""
    api = Api(bench, directory)
    streaming = options.watchers - 1  # one more will stop reading
    tenants = [(f"live-{n}", api.key(f"live-{n}")) for n in range(-(-streaming // OF_A_TENANT))]
    watched, streams = list[tuple[str, str]](), list[tuple[str, str]]()
    for tenant, key in tenants:
        count = min(OF_A_TENANT, streaming - len(watched))
        nids = api.scheduled(key, count)
        watched += [(tenant, nid) for nid in nids]
        streams += [(nid, key) for nid in nids]
    file = directory / "streams.json"
    file.write_text(json.dumps(streams))
    own = api.key("ingest")
    api.ingest_p99(own)
    without = api.ingest_p99(own)
    time.sleep(5)  # until the sink has it all
    before = pss_mib([api.pid])
    say(f"{options.watchers} notifications wait; ingest p99 {without:.1f} ms; the API has {before:.0f} MiB")
    with reading(api.url, file) as readers:
        connected = heard(readers, ask=False)
        time.sleep(3)
        after = pss_mib([api.pid])
        each_kib = (after - before) * 1_024 / streaming
        say(f"connected in {connected['connected_s']:.1f} s; the API has {after:.0f} MiB, {each_kib:.1f} KiB a stream")
        beside = api.ingest_p99(own)
        say(f"ingest p99 beside them {beside:.1f} ms")
        heard(readers)
        histogram = "heliograph_live_delay_seconds_bucket"
        delays, cpu, at = api.metrics(histogram), cpu_s([api.pid]), time.monotonic()
        publishing = Publishing(api.kafka, watched, options.rate, options.seconds)
        publishing.start()
        publishing.join()
        time.sleep(2)
        share = (cpu_s([api.pid]) - cpu) / (time.monotonic() - at)
        told = heard(readers)
        written = [bucket_of(delays, api.metrics(histogram), part) for part in (0.5, 0.99)]
        say(
            f"{told['facts']} of {publishing.published} facts told, p50 {told['p50_ms']:.1f} ms, p99 {told['p99_ms']:.1f} ms"
        )
        full = pss_mib([api.pid])
        stuck = StuckReader(api)
        stuck.start()
        stuck.join()
        grown = pss_mib([api.pid]) - full
        say(f"a reader that stops is kept {stuck.kept_s or -1:.0f} s, memory grows by {grown:.0f} MiB")
        asked = time.time()
        os.kill(api.pid, signal.SIGTERM)
        until(lambda: heard(readers)["open"] == 0, "the streams end", 60)
        ended = heard(readers)["last_end"] - asked
        say(f"all streams ended {ended:.2f} s after SIGTERM")
    return {
        "watchers": options.watchers,
        "connected_s": round(connected["connected_s"], 1),
        "kib_each": round(each_kib, 1),
        "facts": publishing.published,
        "told": told["facts"],
        "p50_ms": round(told["p50_ms"], 1),
        "p99_ms": round(told["p99_ms"], 1),
        "written_p50_ms": round(written[0], 1),
        "written_p99_ms": round(written[1], 1),
        "api_cores": round(share, 2),
        "ingest_p99_ms": round(without, 1),
        "beside_p99_ms": round(beside, 1),
        "ingest_ratio": round(beside / without, 2),
        "stuck_kept_s": round(stuck.kept_s, 1) if stuck.kept_s is not None else None,
        "stuck_mib": round(grown, 1),
        "sigterm_s": round(ended, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.live", description=__doc__)
    parser.add_argument("--watchers", type=int, default=WATCHERS)
    parser.add_argument("--rate", type=float, default=RATE, help="facts a second")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for which they are published")
    parser.add_argument("--read", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.read:
        uvloop.run(read(options.read, [tuple(one) for one in json.loads(options.streams.read_text())]))
        return

    def say(what: str) -> None:
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {what}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as name, running(1) as bench:
        row = measure(bench, Path(name), options, say)
    show([{"what": name, "value": value} for name, value in row.items()], as_json=False)


if __name__ == "__main__":
    main()
