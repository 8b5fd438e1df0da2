"""Which API a command calls: the one that is named, else the local stack's.

May import runtime.http.client and console.commands.stack. Never: a command, an output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from console.commands.stack import read_endpoints
from runtime.errors import SettingsError
from runtime.http.client import ApiClient

Api = Annotated[str | None, typer.Option("--api", help="URL of the API. [default: the local stack's]")]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="HELIOGRAPH_API_KEY", help="[default: the local stack's]")
]


def client(api: str | None, api_key: str | None, state_dir: Path) -> ApiClient:
    """A client of the API named, else of the stack in `state_dir`. Raises SettingsError or LocalStackError."""
    if api and api_key:
        return ApiClient(api, api_key)
    if api or api_key:
        raise SettingsError("give both --api and --api-key (or HELIOGRAPH_API_KEY), or neither for the local stack")
    endpoints = read_endpoints(state_dir)
    return ApiClient(endpoints["api"], endpoints["api_key"])
