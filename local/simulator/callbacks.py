"""Posts the simulated vendors' reports (reports.py makes them) until they are taken.

    PUT /callbacks/{kind}   {"url": U, "secret": S, "copies": 1, "late_s": 0}   where a vendor that has one URL per account
                            reports from now on, and with which secret it signs (of ses: the ARN of its topic)
                            → {"events_key": ...} for a vendor that signs with a key of its own
    GET /callbacks          {"pending": n, "answers": {"delivered": {"204": n}}}

A report is posted `copies` times, the copies up to `late_s` later: duplicates and disorder. One that is not taken (5xx, 4xx of
a vendor that repeats those, no connection) is repeated after 0.25 s, then twice as long each time up to 5 s, for two minutes:
more patient than Twilio, which stops after 15 s. Nothing is kept through a restart of the simulator.

May import aiohttp. Never: a vendor's SDK, the log of accepts.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

SENT_AFTER_S = 0.1
END_AFTER_S = 2.0
TIMEOUT_S = 120.0
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 5.0
_TIMEOUT = aiohttp.ClientTimeout(total=15)
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Post:
    """One request of a vendor. `label` is what it reports."""

    label: str
    after_s: float
    url: str
    body: bytes
    headers: dict[str, str]
    stops: frozenset[int] | None = None
    """Statuses that end the vendor's repetitions; None for all below 500."""

    def is_taken(self, status: int) -> bool:
        """Whether the vendor does not repeat it."""
        return 0 < status < 500 if self.stops is None else status in self.stops


@dataclass(frozen=True, slots=True)
class Target:
    """Where a vendor reports, and how badly."""

    url: str
    secret: str = ""
    copies: int = 1
    late_s: float = 0.0


def target_of(given: Any) -> Target | None:
    """The target that a control request names, None for what is none."""
    match given:
        case {"url": str(url)}:
            secret, copies, late_s = given.get("secret", ""), given.get("copies", 1), given.get("late_s", 0.0)
            known = isinstance(secret, str) and isinstance(copies, int) and isinstance(late_s, int | float)
            if known and 0 < copies <= 10 and 0 <= late_s <= 60:
                return Target(url, secret, copies, float(late_s))
    return None


@dataclass(slots=True)
class Callbacks:
    """Posts reports. `answers` counts by label and HTTP status; 0 is a callback that was never taken."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    targets: dict[str, Target] = field(default_factory=dict)
    """By kind, of vendors with one URL per account."""
    _session: aiohttp.ClientSession | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @property
    def pending(self) -> int:
        """Callbacks not taken yet."""
        return len(self._tasks)

    def report(self, posts: Iterable[Post], target: Target | None = None) -> None:
        """Post these from now on."""
        for post in posts:
            for copy in range(target.copies if target else 1):
                late_s = random.uniform(0, target.late_s) if target and copy else 0.0
                task = asyncio.create_task(self._post_until_taken(post, post.after_s + late_s))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _post_until_taken(self, post: Post, after_s: float) -> None:
        await asyncio.sleep(after_s)
        deadline = asyncio.get_running_loop().time() + TIMEOUT_S
        wait_s = _FIRST_WAIT_S
        while True:
            async with self._room:
                answer = await self._post(post.url, post.body, post.headers)
            if post.is_taken(answer):
                break
            if asyncio.get_running_loop().time() + wait_s > deadline:
                break
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        self.answers[post.label, answer] += 1

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):  # ValueError: an invalid URL
            return 0

    async def close(self) -> None:
        """Stop reporting."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()


def add_callback_routes(app: web.Application, callbacks: Callbacks, kinds: Mapping[str, Mapping[str, str]]) -> None:
    """Serve the control of reports, for these kinds of vendor; each with what a receiver has to know of its keys."""

    async def set_target(request: web.Request) -> web.Response:
        kind = request.match_info["kind"]
        if kind not in kinds:
            return web.json_response({"error": f"the kinds with a target are {', '.join(kinds)}"}, status=404)
        try:
            target = target_of(json.loads(await request.read()))
        except ValueError:
            target = None
        if target is None:
            error = "the body is {url, secret, copies (1 to 10), late_s (0 to 60)}"
            return web.json_response({"error": error}, status=400)
        callbacks.targets[kind] = target
        return web.json_response(kinds[kind])

    async def list_answers(_: web.Request) -> web.Response:
        answers: dict[str, dict[str, int]] = {}
        for (label, code), count in sorted(callbacks.answers.items()):
            answers.setdefault(label, {})[str(code)] = count
        return web.json_response({"pending": callbacks.pending, "answers": answers})

    app.router.add_get("/callbacks", list_answers)
    app.router.add_put("/callbacks/{kind}", set_target)
