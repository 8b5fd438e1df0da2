"""A Kafka broker of a benchmark's own, with our topics.

May import runtime and local. Never: a measurement.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.ports import PortBook
from local.servers.kafka import KafkaServer
from runtime import topics
from runtime.kafka.admin import Admin, wait_for_broker
from runtime.settings import KafkaSettings


@contextmanager
def broker(directory: Path) -> Iterator[KafkaSettings]:
    """It runs on `directory` and ends with the block."""
    book = PortBook()
    server = KafkaServer(directory / "kafka", book.reserve("kafka"), book.reserve("kafka-controller"))
    server.prepare()
    with (
        (directory / "kafka.log").open("wb") as log,
        subprocess.Popen(server.command(), stdout=log, stderr=log) as kafka,
    ):
        try:
            settings = KafkaSettings(bootstrap_servers=server.bootstrap_servers)
            wait_for_broker(settings, 60)
            topics.apply(Admin(settings), "local")
            yield settings
        finally:
            kafka.terminate()
            book.close()
