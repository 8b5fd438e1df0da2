"""A WebSocket of live status without a broker: what ends while it is open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from unittest.mock import create_autospec
from uuid import UUID

from pydantic import SecretStr

from api.live.access import LiveAuthenticator, StreamTokens
from api.live.socket import SUBPROTOCOL, TOO_SLOW, UNAUTHENTICATED, SocketEndpoint
from api.requests import Authenticator
from producers.reference.keys import Caller, Keys
from runtime import ids
from tracking.live.hub import Hub
from tracking.live.watchers import Filters, Frame, NotificationWatcher, TenantWatcher

AT = 1_767_225_600_000
NID = ids.notification_id(AT, "shop", "k")


class World:
    """One connection, a hub that admits whoever asks, and a key that can be revoked."""

    def __init__(self, first: Sequence[Frame] = ()) -> None:
        self.now, self.revoked = AT, set[str]()
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.is_read = asyncio.Event()
        self.is_read.set()
        self.is_waited_for = asyncio.Event()
        self.streams: list[Any] = []
        self.watchers: list[Any] = []
        keys = create_autospec(Keys, instance=True)
        keys.revoked_of.side_effect = lambda asked: self.revoked & set(asked)
        authenticator = create_autospec(Authenticator, instance=True)
        authenticator.caller.return_value = Caller("shop", "key")
        self.tokens = StreamTokens(SecretStr("pepper"), lambda: self.now)
        self.hub = create_autospec(Hub, instance=True)
        self.hub.place.return_value = "1-AQA"

        async def watch(stream: Any, tenant: str, key_id: str, *_: object, **__: object) -> Any:
            watcher = NotificationWatcher(
                tenant, key_id, stream.wake, 1e12, 0, place=lambda: "1-AQA", until_settled=False
            )
            self.watchers.append(watcher)
            return watcher

        async def watch_tenant(stream: Any, tenant: str, key_id: str, *_: object, **__: object) -> Any:
            watcher = TenantWatcher(tenant, key_id, stream.wake, 1e12, 0, Filters(), key_id)
            self.streams.append(stream)
            self.watchers.append(watcher)
            return watcher, first

        self.hub.watch.side_effect, self.hub.watch_tenant.side_effect = watch, watch_tenant
        self.endpoint = SocketEndpoint(
            self.hub, LiveAuthenticator(authenticator, self.tokens, keys, lambda: self.now), ()
        )

    def connect(self, *headers: tuple[bytes, bytes]) -> asyncio.Task[None]:
        self.say({"type": "websocket.connect"})
        scope = {"type": "websocket", "headers": list(headers), "subprotocols": [SUBPROTOCOL]}
        return asyncio.create_task(self.endpoint(scope, self.frames.get, self._send))

    async def _send(self, message: Any) -> None:
        if not self.is_read.is_set():
            self.is_waited_for.set()
        await self.is_read.wait()
        self.said.put_nowait(message)

    def say(self, message: dict[str, Any]) -> None:
        self.frames.put_nowait(message)

    def send(self, **frame: Any) -> None:
        self.say({"type": "websocket.receive", "text": json.dumps(frame)})

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next message of that kind, of the protocol or of ASGI."""
        async with asyncio.timeout(10):
            while True:
                message = await self.said.get()
                if kind in (message["type"], json.loads(message.get("text") or "{}").get("type")):
                    return message


async def test_nothing_is_subscribed_to_once_the_key_is_revoked() -> None:
    world = World()
    task = world.connect((b"authorization", b"Bearer hg_key"))
    world.send(type="subscribe", id="a", filter={"notification_id": NID})
    await world.hear("subscribed")
    world.revoked.add("key")
    world.send(type="subscribe", id="b", filter={"notification_id": NID})
    assert (await world.hear("websocket.close"))["code"] == UNAUTHENTICATED
    await task
    assert len(world.watchers) == world.hub.leave.call_count == 1


async def test_nothing_is_subscribed_to_once_the_token_has_ended() -> None:
    world = World()
    token, ends_at = world.tokens.issue(Caller("shop", "key"), [UUID(NID)], None, 60)
    task = world.connect()
    world.send(type="auth", token=token)
    world.send(type="subscribe", id="a", filter={})
    await world.hear("subscribed")
    world.now = ends_at
    world.send(type="subscribe", id="b", filter={})
    assert (await world.hear("websocket.close"))["code"] == UNAUTHENTICATED
    await task
    assert len(world.watchers) == 1


async def test_reader_that_does_not_read_what_it_resumes_is_seen_and_cut_off() -> None:
    world = World([Frame("status", "{}", "1-AQA")] * 3)
    task = world.connect((b"authorization", b"Bearer hg_key"))
    await world.hear("websocket.accept")
    world.is_read.clear()
    world.send(type="subscribe", id="a", filter={}, after="1-AQA")
    async with asyncio.timeout(10):
        await world.is_waited_for.wait()
    assert world.watchers[0].writing_since is not None
    world.streams[0].cut()
    await asyncio.sleep(0)
    world.is_read.set()
    assert (await world.hear("websocket.close"))["code"] == TOO_SLOW
    await task
    world.hub.leave.assert_called_with(world.watchers[0])
