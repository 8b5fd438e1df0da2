"""`heliograph send`: notifications from a file, an id per line.

May import typer and console.commands.client. Never: HTTP, what a notification may hold.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from console.commands.client import Api, ApiKey, client
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from runtime.errors import HeliographError, SettingsError
from runtime.http.client import ApiClient, ApiError

IN_FLIGHT = 32
FileOrDash = Annotated[
    str, typer.Argument(metavar="FILE|-", help="JSON (one body, or a list) or JSONL; - reads stdin.")
]


class NotAcceptedError(HeliographError):
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


def send(source: FileOrDash, api: Api = None, api_key: ApiKey = None, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Send notifications (JSON or JSONL in the shape of the API) and print an id per line, in order."""
    calls = client(api, api_key, state_dir)
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read {source}: {exc}") from exc
    refused = asyncio.run(_send_all(calls, list(read_bodies(text))))
    if refused:
        raise NotAcceptedError(f"{refused} not accepted, see above")


async def _send_all(calls: ApiClient, bodies: list[dict[str, Any]]) -> int:
    """Print the id or the refusal of each, in order; returns how many were refused."""
    refused = 0
    async with calls as api:
        for start in range(0, len(bodies), IN_FLIGHT):
            batch = bodies[start : start + IN_FLIGHT]
            for number, sent in enumerate(await asyncio.gather(*(_send_one(api, body) for body in batch)), start + 1):
                if isinstance(sent, ApiError):
                    refused += 1
                    typer.echo(f"notification {number}: {sent.status} {sent.words}", err=True)
                else:
                    typer.echo(sent)
    return refused


async def _send_one(api: ApiClient, body: dict[str, Any]) -> str | ApiError:
    """Its id, or why it is refused."""
    try:
        answer = await api.call("POST", "/v1/notifications", body, expect=(202,))
    except ApiError as exc:
        return exc
    return str(answer.body["id"])
