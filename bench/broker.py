"""A Kafka broker of a benchmark's own, with our topics.

May import runtime and console.local. What never enters here: a measurement.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from console.local.kafka_server import KafkaServer
from console.local.ports import PortBook
from runtime import topics
from runtime.kafka import Admin, wait_for_broker
from runtime.settings import KafkaSettings


@contextmanager
def broker() -> Iterator[tuple[KafkaSettings, Path]]:
    """(settings, a directory), both gone afterwards."""
    book = PortBook()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
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
                yield settings, directory
            finally:
                kafka.terminate()
    book.close()
