"""What comes before a body, over a real socket: bounded in bytes and in time, whoever sends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from runtime.health import Health
from runtime.http import serving
from runtime.http.serving import MAX_HEAD_BYTES, listen, serve


async def size(scope: Scope, receive: Receive, send: Send) -> None:
    """Says how many bytes the body has."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    """The port of one that reads bodies."""
    listener, stopping = listen("127.0.0.1", 0, "PORT"), asyncio.Event()
    task = asyncio.create_task(serve(size, listener, stopping, Health()))
    try:
        yield listener.getsockname()[1]
    finally:
        stopping.set()
        await task
        listener.close()


async def said(port: int, *chunks: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""  # closed while more was on its way
    finally:
        writer.close()


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    "chunks",
    [
        [HEAD + b"X-A: ", *[b"a" * 65_536] * 64],
        [HEAD, *[b"".join(b"X-%d: a\r\n" % n for n in range(5_000))] * 64],
        [b"POST /", *[b"a" * 65_536] * 64],
    ],
    ids=["one header", "many headers", "path"],
)
async def test_head_without_end_is_cut_off(chunks: list[bytes]) -> None:
    async with server() as port:
        answer = await said(port, *chunks)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 "), answer
        assert (await said(port, HEAD + b"Connection: close\r\nContent-Length: 0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_head_that_comes_too_slowly_is_408_and_so_is_the_next_of_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", 0.1)
    async with server() as port:
        assert (await said(port, HEAD)).startswith(b"HTTP/1.1 408 ")
        answers = await said(port, HEAD + b"Content-Length: 0\r\n\r\n", HEAD)
        assert answers.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answers


async def test_connection_that_never_asks_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "KEEP_ALIVE_S", 0.1)
    async with server() as port:
        assert await said(port) == b""


async def test_head_of_the_largest_size_and_a_body_in_pieces_are_taken() -> None:
    async with server() as port:
        head = HEAD + b"Connection: close\r\nContent-Length: 300000\r\nX-A: "
        head += b"a" * (MAX_HEAD_BYTES - len(head) - 4) + b"\r\n\r\n"
        answer = await said(port, head[:1_000], head[1_000:], *[b"b" * 100_000] * 3)
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"300000 bytes"), answer
