"""What the vendors share: the log of accepts, the faults, the counts; and how HTTP vendors apply a verdict.

May import ground_truth, faults and aiohttp. Never: a vendor's wire format.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import prometheus_client
from aiohttp import web

from local.simulator import WRONG_SECRET
from local.simulator.faults import LOOK_UP, FaultBook, Mode
from local.simulator.ground_truth import Accept, GroundTruth

REQUESTS = prometheus_client.Counter(
    "heliograph_simulator_requests_total", "Provider requests seen, refused ones too.", ["kind"]
)
ACCEPTED = prometheus_client.Counter("heliograph_simulator_accepted_total", "Provider requests accepted.", ["kind"])

MESSAGE_ID_HEADER = "X-Heliograph-Message-Id"
"""Our message id, where a vendor's API has no field for it."""
MAX_SHOWN = 100_000
_RST = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


@dataclass(slots=True)
class SimulatorState:
    """One simulator's state."""

    truth: GroundTruth
    faults: FaultBook
    requests: Counter[str] = field(default_factory=Counter)

    def seen(self, kind: str) -> None:
        """Count a provider request before anything is decided about it."""
        self.requests[kind] += 1
        REQUESTS.labels(kind).inc()

    def accept(self, accept: Accept) -> asyncio.Future[int]:
        """Log an accept; the future gives its seq once it is on disk."""
        ACCEPTED.labels(accept.kind).inc()
        return self.truth.append(accept)


class Shown:
    """What a vendor took, to be asked after by a key: the last MAX_SHOWN, since this simulator started."""

    def __init__(self) -> None:
        self._kept = OrderedDict[str, list[tuple[str, Any]]]()

    def add(self, key: str, to: str, resource: Any) -> None:
        """Show a message to whoever asks after the key."""
        self._kept.setdefault(key, []).append((to, resource))
        if len(self._kept) > MAX_SHOWN:
            self._kept.popitem(last=False)

    def of(self, key: str) -> list[tuple[str, Any]]:
        """(recipient, resource) of what was taken under a key."""
        return self._kept.get(key, [])


class VendorErrors(Protocol):
    """A vendor's own words for the three scripted errors."""

    def throttled(self, retry_after: str | None) -> web.Response: ...
    def failed(self, retry_after: str | None) -> web.Response: ...
    def rejected(self, recipient: str) -> web.Response: ...


def basic_secret(request: web.Request, user: str | None = None) -> str | None:
    """The secret of basic authentication (by `user`, where given); None where there is none, or the wrong one."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    try:
        name, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    known = scheme.lower() == "basic" and name and (user is None or name == user)
    return secret if known and secret and secret != WRONG_SECRET else None


def reset_at(retry_after: str | None, now: float) -> int | None:
    """The second since 1970 that a Retry-After means, for vendors that name it so."""
    if retry_after is None:
        return None
    try:
        return int(now + float(retry_after))
    except ValueError:
        pass
    try:
        return int(parsedate_to_datetime(retry_after).timestamp())
    except ValueError:
        return None


def reset_connection(transport: asyncio.Transport) -> None:
    """Close with RST, as a crashed or overloaded front end does."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    transport.abort()


async def answer(
    state: SimulatorState,
    request: web.Request,
    errors: VendorErrors,
    accept: Accept,
    success: Callable[[], web.Response],
    accepted: Callable[[], None] = lambda: None,
) -> web.Response:
    """Decide about a valid request, log it if it is accepted (`accepted` is called then), answer or misbehave."""
    decision = state.faults.decide(accept.kind, accept.to)
    if decision.latency_s:
        await asyncio.sleep(decision.latency_s)
    retry_after = decision.retry_after(datetime.now(UTC))
    match decision.mode:
        case Mode.THROTTLE:
            return errors.throttled(retry_after)
        case Mode.FAIL:
            return errors.failed(retry_after)
        case Mode.REJECT:
            return errors.rejected(accept.to)
        case Mode.RESET:
            if request.transport is not None:
                reset_connection(request.transport)
            return web.Response(status=500)
        case _:
            await state.accept(accept)
            accepted()
    match decision.mode:
        case Mode.FAIL_AFTER_ACCEPT:
            return errors.failed(retry_after)
        case Mode.DROP_AFTER_ACCEPT:
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=500)
        case Mode.BAD_JSON:
            good = success()
            return web.Response(status=good.status, body=b'{"sid": "SM\xff<html>', content_type="application/json")
        case _:
            return success()


async def show(
    state: SimulatorState,
    request: web.Request,
    kind: str,
    errors: VendorErrors,
    found: list[tuple[str, Any]],
    listed: Callable[[list[Any]], web.Response],
) -> web.Response:
    """Answer a look-up with what was found, or misbehave."""
    decision = state.faults.decide(kind, found[0][0] if found else "", LOOK_UP)
    if decision.latency_s:
        await asyncio.sleep(decision.latency_s)
    retry_after = decision.retry_after(datetime.now(UTC))
    match decision.mode:
        case Mode.THROTTLE:
            return errors.throttled(retry_after)
        case Mode.FAIL | Mode.FAIL_AFTER_ACCEPT:
            return errors.failed(retry_after)
        case Mode.REJECT:
            return listed([])
        case Mode.RESET | Mode.DROP_AFTER_ACCEPT:
            if request.transport is not None:
                reset_connection(request.transport)
            return web.Response(status=500)
        case Mode.BAD_JSON:
            return web.Response(body=b'[{"id": "\xff<html>', content_type="application/json")
        case _:
            return listed([resource for _, resource in found])
