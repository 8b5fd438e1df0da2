"""Requests over kept connections: `python -m bench.load URL --token TOKEN --requests 10000 [--keyed]`, or `--file FILE`.

Each connection sends its next request when the answer to the one before is there. Prints seconds, answers by status, and p50 and p99 in ms.
It costs as little as it can, for it shares the cores with what it asks.
May import bench. Never: a check of a body.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from bench import data
from bench.figures import quantile

BODY = {"channels": ["email"], "template": {"id": data.TEMPLATE}, "data": data.ORDER}
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One of them; `done` when there is nothing more to send."""

    def __init__(
        self, requests: Iterator[bytes], statuses: Counter[int], waits: list[float], due: Iterator[float] | None
    ) -> None:
        """`due`: when each request is to go out, by the loop's clock; at once where there is none."""
        self._requests, self._statuses, self._waits, self._due = requests, statuses, waits, due
        self._held, self._sent_at = b"", 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
        elif self._due is None:
            self._send(request)
        else:
            asyncio.get_running_loop().call_at(next(self._due), self._send, request)

    def _send(self, request: bytes) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, received: bytes) -> None:
        self._held += received
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._held, 0, end)
        if len(self._held) < end + 4 + (int(length[1]) if length else 0):
            return
        self._waits.append(time.perf_counter() - self._sent_at)
        self._statuses[int(self._held[9:12])] += 1
        self._held = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def requests(url: str, token: str, count: int, mark: str | None) -> Iterator[bytes]:
    """Each to another user; with a mark each has an Idempotency-Key."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {token}\r\n"
    for number in range(count):
        body = json.dumps({"to": {"user_id": f"u{number}"}, **BODY}).encode()
        key = f"Idempotency-Key: {mark}-{number}\r\n" if mark else ""
        length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        yield (head + key + length).encode() + body


def write_requests(path: Path, url: str, posts: Iterable[tuple[str, Mapping[str, str], bytes]]) -> int:
    """Requests for `--file`, of (path, headers, body); how many."""
    host, number = urlsplit(url).netloc, 0
    with path.open("wb") as file:
        for where, headers, body in posts:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"POST {where} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode(
                "latin-1"
            )
            file.write(len(head + body).to_bytes(4, "big") + head + body)
            number += 1
    return number


def read_requests(path: Path) -> Iterator[bytes]:
    """What write_requests wrote."""
    with path.open("rb") as file:
        while length := file.read(4):
            yield file.read(int.from_bytes(length, "big"))


async def run(url: str, made: Iterator[bytes], connections: int, rate: float | None = None) -> dict[str, object]:
    parts, statuses, waits = urlsplit(url), Counter[int](), list[float]()
    loop = asyncio.get_running_loop()
    due = count(loop.time(), 1 / rate) if rate else None
    began = time.perf_counter()
    peers = [
        (
            await loop.create_connection(
                lambda: Connection(made, statuses, waits, due), parts.hostname or "", parts.port or 80
            )
        )[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(peer.done for peer in peers))
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "statuses": statuses,
        "p50_ms": quantile(waits, 0.5) * 1000,
        "p99_ms": quantile(waits, 0.99) * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--token", default="")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--keyed", metavar="MARK", help="an Idempotency-Key for each, which starts so")
    parser.add_argument("--file", type=Path, help="requests as write_requests wrote them, in place of notifications")
    parser.add_argument("--rate", type=float, help="requests a second; as many as are answered where it is left out")
    options = parser.parse_args()
    made = list(
        read_requests(options.file)
        if options.file
        else requests(options.url, options.token, options.requests, options.keyed)
    )
    sys.stdout.write(json.dumps(asyncio.run(run(options.url, iter(made), options.connections, options.rate))) + "\n")


if __name__ == "__main__":
    main()
