"""The HTTP API as commands call it: the local stack's unless another one is named.

May import console.commands.stack. Never: a command, an output.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.commands.stack import read_endpoints
from runtime.errors import HeliographError, SettingsError, UnavailableError


class ApiError(HeliographError):
    """The API refused; `status` is the HTTP status."""

    def __init__(self, status: int, problem: Any) -> None:
        words = problem.get("detail") or problem.get("title") if isinstance(problem, dict) else None
        super().__init__(f"the API answered {status}: {words or 'without a reason'}")
        self.status = status


@dataclass(frozen=True, slots=True)
class ApiClient:
    """Calls with one key."""

    url: str
    api_key: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer. Raises ApiError or UnavailableError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, method=method)
        request.add_header("Authorization", f"Bearer {self.api_key}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                raw = response.read()
        except urllib.error.HTTPError as exc:
            raise ApiError(exc.code, _json(exc.read())) from exc
        except OSError as exc:
            raise UnavailableError(f"cannot reach the API at {self.url}: {exc}; is it running?") from exc
        return _json(raw)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None


def client(api: str | None, api_key: str | None, state_dir: Path) -> ApiClient:
    """The API named, else that of the stack in `state_dir`. Raises SettingsError or LocalStackError."""
    if api and api_key:
        return ApiClient(api, api_key)
    if api or api_key:
        raise SettingsError("give both --api and --api-key (or HELIOGRAPH_API_KEY), or neither for the local stack")
    endpoints = read_endpoints(state_dir)
    return ApiClient(endpoints["api"], endpoints["api_key"])
