"""A whole local stack for end-to-end tests: one per session, on a state directory of its own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clickhouse_connect
import pytest

from local import stack


@dataclass
class Stack:
    """A running stack and what a user does with it."""

    state_dir: Path

    @property
    def endpoints(self) -> dict[str, Any]:
        return stack.read_endpoints(self.state_dir)

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON body, headers) of an API call with the local key."""
        endpoints = self.endpoints
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(endpoints["api"] + path, data, method=method)
        request.add_header("Authorization", f"Bearer {endpoints['api_key']}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                raw = response.read()
                return response.status, json.loads(raw) if raw else None, dict(response.headers)
        except urllib.error.HTTPError as exc:
            raw = exc.read()
            return exc.code, json.loads(raw) if raw else None, dict(exc.headers)

    def get(self, endpoint: str, path: str) -> Any:
        """JSON of another part (simulator, mailbox)."""
        with urllib.request.urlopen(self.endpoints[endpoint] + path, timeout=30) as response:
            return json.load(response)

    def query(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Rows from ClickHouse."""
        endpoints = self.endpoints
        client = clickhouse_connect.get_client(dsn=endpoints["clickhouse"], database=endpoints["clickhouse_database"])
        try:
            return [tuple(row) for row in client.query(sql, parameters=parameters).result_rows]
        finally:
            client.close()


@pytest.fixture(scope="module")  # not longer: a stack that idles takes a third of a core from all other tests
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    state_dir = tmp_path_factory.mktemp("stack")
    started = stack.up(state_dir, detach=True)
    try:
        yield Stack(state_dir)
    finally:
        stack.down(state_dir)
        assert started.process is not None
        started.process.wait(10)
