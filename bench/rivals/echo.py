"""Two servers that keep nothing: `python -m bench.rivals.echo asgi|fastapi PORT`.

asgi      answers 202 with an id as soon as it has the body: what the HTTP server itself costs
fastapi   a route with a model, as its guide shows it, that produces nothing
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def asgi(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    body = b'{"id": "%s"}' % uuid.uuid4().hex.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Notification(BaseModel):
    to: dict[str, str]
    channels: list[str]
    template: dict[str, str]
    data: dict[str, Any]


def fastapi() -> FastAPI:
    made = FastAPI()

    @made.post("/v1/notifications", status_code=202)
    async def accept(notification: Notification) -> dict[str, str]:
        return {"id": uuid.uuid4().hex}

    return made


def main(kind: str, port: int) -> None:
    app: Any = asgi if kind == "asgi" else fastapi()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False, lifespan="off")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
