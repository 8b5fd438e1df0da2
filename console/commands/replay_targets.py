"""Where replay and dlq work: the settings, or the local stack that runs in a directory; and who asks.

May import console.commands.stack. Never: a question to a store.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from console.commands.stack import settings_for as stack_settings_for
from replay.store import ReplayStore
from runtime.kafka.producer import Producer
from runtime.logs import configure_logs
from runtime.registry import use_wire_ids
from runtime.settings import Settings


def settings_for(state_dir: Path) -> Settings:
    """The settings found, moved to the stores of the local stack where one runs in `state_dir`."""
    configure_logs("replay", "warning")  # to stderr: what is printed is the answer
    settings = stack_settings_for(state_dir)
    use_wire_ids(settings)
    return settings


@contextmanager
def writing_store(settings: Settings) -> Iterator[ReplayStore]:
    """What a replay reads and writes down, in ClickHouse and on its topics."""
    producer = Producer(settings.kafka, client_id="replay-journal")
    store = ReplayStore(settings.clickhouse, producer.publish)
    try:
        yield store
    finally:
        store.close()
        producer.close()


def who() -> str:
    """Who runs this command, for the record of it."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container's user need not have a name
        return f"unknown@{socket.gethostname()}"
