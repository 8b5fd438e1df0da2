"""An HTTP role that is restarted while it is called: beside another one of its kind, nobody is refused."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.health import Health
from runtime.http.serving import listen, serve

DRAIN_S = 2.0
"""Many turns of the caller that watches, also on a machine that does other things."""


def application(health: Health) -> Starlette:
    async def ready(_: Request) -> Response:
        reason = health.not_ready()
        return JSONResponse({"reason": reason}, 200 if reason is None else 503)

    async def work(_: Request) -> Response:
        await asyncio.sleep(0.01)
        return Response("done")

    return Starlette(routes=[Route("/readyz", ready), Route("/work", work)])


@dataclass
class Process:
    """One of two: what a supervisor starts and stops."""

    listener: socket.socket = field(default_factory=lambda: listen("127.0.0.1", 0, "X"))

    def start(self) -> None:
        self.port = self.listener.getsockname()[1]
        self.stopping, health = asyncio.Event(), Health()
        self.serving = asyncio.create_task(serve(application(health), self.listener, self.stopping, health, DRAIN_S))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def restart(self) -> None:
        self.stopping.set()
        await self.serving
        self.listener = listen("127.0.0.1", self.port, "X")
        self.start()


async def test_two_processes_restarted_one_after_the_other_under_load_refuse_nobody() -> None:
    processes = [Process(), Process()]
    for process in processes:
        process.start()
    ready, answered, ended = {0, 1}, [0, 0], asyncio.Event()
    async with httpx.AsyncClient(timeout=5) as client:

        async def watch() -> None:  # as a load balancer does
            while not ended.is_set():
                for index, process in enumerate(processes):
                    try:
                        status = (await client.get(f"{process.url}/readyz")).status_code
                    except httpx.HTTPError:
                        status = 0
                    (ready.add if status == 200 else ready.discard)(index)
                await asyncio.sleep(0.02)

        async def call() -> None:
            turn = 0
            while not ended.is_set():
                turn += 1
                if not (there := sorted(ready)):
                    await asyncio.sleep(0.01)  # the load balancer has not asked the first one back yet
                    continue
                index = there[turn % len(there)]
                assert (await client.get(f"{processes[index].url}/work")).text == "done"
                answered[index] += 1

        watching = asyncio.create_task(watch())
        callers = [asyncio.create_task(call()) for _ in range(8)]
        for _ in range(2):
            for process in processes:
                before = sum(answered)
                await process.restart()
                assert sum(answered) > before
        ended.set()
        await asyncio.gather(*callers, watching)
    for process in processes:
        process.stopping.set()
    await asyncio.gather(*(process.serving for process in processes))
    assert min(answered) > 0


async def test_connection_that_was_idle_for_seconds_is_used_again() -> None:
    process = Process()
    process.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    for pause_s in (6, 0):  # uvicorn's own limit is 5 s
        writer.write(b"GET /work HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"done")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(pause_s)
    process.stopping.set()
    await process.serving
    assert await reader.read() == b"", "and it is ended when the process ends"
    writer.close()


async def test_while_it_drains_it_answers_and_ends_each_connection() -> None:
    process = Process()
    process.start()
    async with httpx.AsyncClient(timeout=5) as client:
        assert "connection" not in (await client.get(f"{process.url}/work")).headers
        process.stopping.set()
        last = await client.get(f"{process.url}/work")
        assert (last.text, last.headers["connection"]) == ("done", "close")
        assert (await client.get(f"{process.url}/readyz")).status_code == 503
        await process.serving
