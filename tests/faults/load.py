"""Requests of every kind at a steady rate, through both doors, each tried until it is accepted: the journal of the oracle."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from producers.publisher import AsyncPublisher
from runtime.clock import system_clock
from runtime.errors import PublishError
from runtime.settings import KafkaSettings

KINDS = ("email", "email", "sms", "push", "apns")


@dataclass
class Journal:
    """What was accepted: notification id → what is expected of it."""

    accepted: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    """Answers nobody should get."""
    retried: int = 0


def body(mark: str, n: int, rng: random.Random) -> dict[str, Any]:
    """A notification to a recipient of its own."""
    kind = rng.choice(KINDS)
    to: dict[str, Any] = {"email": f"{mark}-{n}@example.org"}
    if kind == "sms":
        to = {"phone": f"+4915{n % 10**9:09d}"}
    elif kind == "push":
        to = {"device_tokens": [{"platform": "fcm", "token": f"{mark}-{n}-token"}]}
    elif kind == "apns":
        to = {"device_tokens": [{"platform": "apns", "token": f"{n:064x}"}]}
    parts = {
        "email": {"subject": f"No {n}", "text": "Text"},
        "sms": {"text": f"No {n}"},
        "push": {"title": f"No {n}", "body": "Text"},
        "apns": {"title": f"No {n}", "body": "Text"},
    }
    return {
        "to": to,
        "content": parts[kind],
        "channels": ["push" if kind == "apns" else kind],
        "priority": rng.choice(("critical", "normal", "normal", "bulk")),
        "delivery": "at_most_once" if rng.random() < 0.2 else "at_least_once",
    }


class Load:
    """`count` notifications at `per_second`, from a thread of its own; half over HTTP, half by the library."""

    def __init__(
        self, endpoints: Callable[[], dict[str, Any]], mark: str, count: int, per_second: float, seed: int
    ) -> None:
        self.journal = Journal()
        self._endpoints, self._mark, self._count, self._per_second = endpoints, mark, count, per_second
        self._rng = random.Random(seed)
        self._stopped = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until everything is accepted."""
        self._thread.join()

    def stop(self) -> None:
        """Begin nothing more, and wait for what is under way."""
        self._stopped = True
        self._thread.join()

    async def _run(self) -> None:
        endpoints = self._endpoints()
        kafka = KafkaSettings(bootstrap_servers=endpoints["kafka"])
        tasks = set()
        started = asyncio.get_running_loop().time()
        async with (
            AsyncPublisher(kafka, tenant=endpoints["tenant"], source="storm") as publisher,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as session,
        ):
            for n in range(self._count):
                due = started + n / self._per_second
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                if self._stopped:
                    break
                wanted = body(self._mark, n, self._rng)
                send = (
                    self._over_http(session, endpoints, n, wanted) if n % 2 else self._by_library(publisher, n, wanted)
                )
                task = asyncio.create_task(send)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _over_http(self, session: aiohttp.ClientSession, endpoints: dict[str, Any], n: int, wanted: Any) -> None:
        headers = {
            "Authorization": f"Bearer {endpoints['api_key']}",
            "Idempotency-Key": f"{self._mark}-{n}",
            "Content-Type": "application/json",
        }
        url, raw = f"{endpoints['api']}/v1/notifications", json.dumps(wanted)
        while True:
            try:
                async with session.post(
                    url, data=raw, headers=headers, timeout=aiohttp.ClientTimeout(total=20)
                ) as answer:
                    if answer.status == 202:
                        self.journal.accepted[(await answer.json())["id"]] = wanted
                        return
                    if answer.status != 503:
                        self.journal.refused.append(f"{answer.status} {await answer.text()}")
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass  # no 202, no promise: the same key again
            self.journal.retried += 1
            await asyncio.sleep(0.5)

    async def _by_library(self, publisher: AsyncPublisher, n: int, wanted: Any) -> None:
        at = system_clock()
        while True:
            try:
                id_ = await publisher.publish(wanted, idempotency_key=f"{self._mark}-{n}", accepted_at=at)
            except PublishError:
                self.journal.retried += 1
                await asyncio.sleep(0.5)
            else:
                self.journal.accepted[id_] = wanted
                return
