"""Which API a command calls: the one that is named, else the local stack's; and a call for commands that make few.

May import runtime.http.client and console.commands.stack. Never: a command, an output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from console.commands.stack import read_endpoints
from runtime.errors import SettingsError
from runtime.http.client import ApiClient

Api = Annotated[str | None, typer.Option("--api", help="URL of the API. [default: the local stack's]")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="HELIOGRAPH_API_KEY", help="[default: the local stack's]")
]

PAGE = 100
"""Entries asked for at once."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Show at most that many.")]
JsonFile = Annotated[str, typer.Argument(metavar="FILE|-", help="JSON in the shape of the API; - reads stdin.")]


def client(api: str | None, api_key: str | None, state_dir: Path) -> ApiClient:
    """A client of the API named, else of the stack in `state_dir`. Raises SettingsError or LocalStackError."""
    if api and api_key:
        return ApiClient(api, api_key)
    if api or api_key:
        raise SettingsError("give both --api and --api-key (or HELIOGRAPH_API_KEY), or neither for the local stack")
    endpoints = read_endpoints(state_dir)
    return ApiClient(endpoints["api"], endpoints["api_key"])


def ask(calls: ApiClient, method: str, path: str, body: Any = None) -> Any:
    """The JSON value of one call's answer. Raises ApiError or UnavailableError."""

    async def once() -> Any:
        async with calls as api:
            return (await api.call(method, path, body)).body

    return asyncio.run(once())


def listed(calls: ApiClient, path: str, query: Mapping[str, str | None], most: int) -> list[dict[str, Any]]:
    """The first `most` entries of a list, page after page. Raises ApiError or UnavailableError."""

    async def pages() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor: str | None = ""
        async with calls as api:
            while cursor is not None and len(found) < most:
                wanted = {**query, "cursor": cursor, "limit": str(min(PAGE, most - len(found)))}
                given = urlencode({name: value for name, value in wanted.items() if value})
                page = (await api.call("GET", f"{path}?{given}")).body
                found += page["entries"]
                cursor = page["next_cursor"]
        return found

    return asyncio.run(pages())


def segment(name: str) -> str:
    """A name as one step of a path."""
    return quote(name, safe="")


def read_json(source: str) -> Any:
    """The value of a JSON file, or of stdin where it is named `-`. Raises SettingsError."""
    try:
        return json.loads(sys.stdin.read() if source == "-" else Path(source).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"cannot read {source}: {exc}") from exc
    except ValueError as exc:
        raise SettingsError(f"{source} is not JSON: {exc}") from exc
