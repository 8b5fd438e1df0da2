"""A live api for contract tests: Kafka, PostgreSQL, ClickHouse, relay and api as processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.settings import ClickHouseSettings
from sinks import schema
from tests.integration.conftest import Broker, broker
from tests.integration.reference_stack import World, postgres, world
from tests.support.clickhouse import Server

__all__ = ["Broker", "broker", "postgres", "world"]


@pytest.fixture(scope="module")
def live(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The world with its roles running."""
    server = Server(Path(tmp_path_factory.mktemp("clickhouse")) / "data").start()
    url = f"http://127.0.0.1:{server.port}"
    schema.migrate(ClickHouseSettings(url=url))
    world.settings["HELIOGRAPH_CLICKHOUSE__URL"] = url
    world.run("relay")
    world.run("api")
    world.run("sink")
    world.wait_ready()
    yield world
    world.broker.stop_roles()
    assert server.stop() == 0
