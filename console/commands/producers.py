"""Commands of this package, as plain functions for console/cli.py to mount: send, migrate.

May import typer and aiohttp; PostgreSQL's client only when a command needs it. Never: where the local
stack keeps its endpoints (`send` is given them).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from runtime.errors import HeliographError, SettingsError
from runtime.settings import PostgresSettings

IN_FLIGHT = 32
_TIMEOUT_S = 60

FileOrDash = Annotated[
    str, typer.Argument(metavar="FILE|-", help="JSON (one body, or a list) or JSONL; - reads stdin.")
]
Api = Annotated[str | None, typer.Option("--api", help="URL of the API. [default: the local stack's]")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="HELIOGRAPH_API_KEY", help="[default: the local stack's]")
]
Endpoints = Callable[[], Mapping[str, Any]]
"""Gives the local stack's endpoints.json; raises HeliographError when no stack is up."""


class RefusedError(HeliographError):
    """The API refused at least one notification."""


def read_bodies(text: str) -> Iterator[dict[str, Any]]:
    """The bodies of a JSON or JSONL text. Raises SettingsError naming the line."""
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if whole is not None:
        yield from whole if isinstance(whole, list) else [whole]
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as exc:
                raise SettingsError(f"line {number} is not JSON: {exc}") from exc


def send(source: FileOrDash, api: Api = None, api_key: ApiKey = None, *, endpoints: Endpoints | None = None) -> None:
    """Send notifications and print an id per line, in order."""
    if (api is None or api_key is None) and endpoints is not None:
        local = endpoints()
        api, api_key = api or str(local["api"]), api_key or str(local["api_key"])
    if api is None or api_key is None:
        raise SettingsError("no API is known: give --api and --api-key, or start a stack with `heliograph up`")
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read {source}: {exc}") from exc
    refused = asyncio.run(_send_all(list(read_bodies(text)), api.rstrip("/"), api_key))
    if refused:
        raise RefusedError(f"{refused} not accepted, see above")


async def _send_all(bodies: list[dict[str, Any]], api: str, api_key: str) -> int:
    headers = {"Authorization": f"Bearer {api_key}"}
    refused = 0
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(_TIMEOUT_S)) as session:
        for start in range(0, len(bodies), IN_FLIGHT):
            batch = bodies[start : start + IN_FLIGHT]
            try:
                answers = await asyncio.gather(*(_send_one(session, api, body) for body in batch))
            except (aiohttp.ClientError, TimeoutError) as exc:
                raise HeliographError(f"cannot reach {api}: {type(exc).__name__}; is the API running?") from exc
            for number, (accepted, answer) in enumerate(answers, start + 1):
                if accepted:
                    typer.echo(answer)
                else:
                    refused += 1
                    typer.echo(f"notification {number}: {answer}", err=True)
    return refused


async def _send_one(session: aiohttp.ClientSession, api: str, body: dict[str, Any]) -> tuple[bool, str]:
    async with session.post(f"{api}/v1/notifications", json=body) as response:
        answer = await response.json(content_type=None)
        return (True, str(answer["id"])) if response.status == 202 else (False, f"{response.status} {answer['detail']}")


def migrate(settings: PostgresSettings) -> None:
    """Bring PostgreSQL's tables up to date."""
    from producers.reference.schema import migrate as apply

    applied = apply(settings.dsn.get_secret_value())
    for name in applied:
        typer.echo(f"applied {name}")
    if not applied:
        typer.echo("PostgreSQL is up to date")
