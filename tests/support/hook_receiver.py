"""A customer's side of webhooks: endpoints that take, are slow, are away or refuse, and remember what they were told.

    async with serving(HookReceiver()) as receiver:                 receiver.url(name) is one endpoint
        receiver.modes[name] = Mode("slow", 0.2)

    | mode     | a request                                                                  |
    |----------|----------------------------------------------------------------------------|
    | ok       | 204                                                                        |
    | slow     | 204 after `seconds`                                                        |
    | dead     | the connection is closed without an answer                                 |
    | status   | the status, with Retry-After where `seconds` are given                     |
    | flaky    | 500 for every tenth request, by its number                                 |

A request is checked as a receiver does: by the specification, with the secrets that hold.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

MAX_AGE_S = 300


@dataclass
class Mode:
    """How an endpoint behaves."""

    name: str = "ok"
    seconds: float = 0.0
    status: int = 500


@dataclass
class Told:
    """One request that was taken."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return from_json(self.body)


@dataclass
class HookReceiver:
    """Endpoints by name, on one port."""

    port: int = 0
    modes: dict[str, Mode] = field(default_factory=dict)
    secrets: dict[str, list[str]] = field(default_factory=dict)
    """Of an endpoint; a request that none of them signed is `forged`."""
    told: defaultdict[str, dict[str, list[Told]]] = field(default_factory=lambda: defaultdict(dict))
    """What was taken: endpoint → webhook-id → requests."""
    requests: Counter[str] = field(default_factory=Counter)
    forged: list[str] = field(default_factory=list)
    keep: int = 1 << 30
    """How many requests of one id are kept whole."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def ids(self, name: str) -> set[str]:
        return set(self.told[name])

    def states(self, name: str) -> list[tuple[str, str]]:
        """(notification, state) of everything that an endpoint was told, each once."""
        data = [requests[0].json["data"] for requests in self.told[name].values()]
        return sorted((each["notification_id"], each["state"]) for each in data)

    def receive(self, name: str, headers: dict[str, str], body: bytes) -> tuple[float, bytes] | None:
        """(delay, answer); None closes the connection."""
        self.requests[name] += 1
        mode = self.modes.get(name, Mode())
        if mode.name == "dead":
            return None
        if mode.name == "flaky" and self.requests[name] % 10 == 0:
            return 0.0, _answer(500)
        if mode.name == "status":
            return 0.0, _answer(mode.status, f"Retry-After: {mode.seconds:g}\r\n" if mode.seconds else "")
        if name in self.secrets and not any(verifies(secret, headers, body) for secret in self.secrets[name]):
            self.forged.append(name)
            return 0.0, _answer(401)
        taken = self.told[name].setdefault(headers["webhook-id"], [])
        taken.append(Told(headers, body, time.time()))
        return mode.seconds if mode.name == "slow" else 0.0, _answer(204)


def verifies(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether a request is signed by a secret and not old, by the specification and not by our own code."""
    at = headers.get("webhook-timestamp", "")
    if not at.isdigit() or abs(time.time() - int(at)) > MAX_AGE_S:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{at}.".encode() + body
    wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(wanted, given) for given in headers.get("webhook-signature", "").split())


def _answer(status: int, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\n{headers}Content-Length: 0\r\n\r\n".encode()


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: HookReceiver, open_: set[asyncio.Transport]) -> None:
        self._receiver, self._open = receiver, open_
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._held[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            whole = end + 4 + int(headers.get("content-length", 0))
            if len(self._held) < whole:
                return
            body, self._held = self._held[end + 4 : whole], self._held[whole:]
            answer = self._receiver.receive(first.split(" ")[1].lstrip("/"), headers, body)
            if answer is None:
                self._transport.close()
            elif answer[0]:
                asyncio.get_running_loop().call_later(answer[0], self._transport.write, answer[1])
            else:
                self._transport.write(answer[1])


@contextlib.asynccontextmanager
async def serving(receiver: HookReceiver) -> AsyncIterator[HookReceiver]:
    """Listen on loopback."""
    connections = set[asyncio.Transport]()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(receiver, connections), "127.0.0.1", receiver.port, backlog=1_024
    )
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for each in tuple(connections):
            each.abort()
        await asyncio.sleep(0)  # a turn, in which they end


@contextlib.contextmanager
def in_a_thread(receiver: HookReceiver) -> Iterator[HookReceiver]:
    """Listen, for a test that is no coroutine."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def live() -> None:
        async with serving(receiver):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(live()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield receiver
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
