"""A Kafka broker of a benchmark's own, with our topics.

May import schemas, runtime and local. Never: a measurement.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewPartitions  # noqa: TID251 # the catalogue has no such profile

from local.ports import PortBook
from local.servers.kafka import KafkaServer
from runtime import topics
from runtime.errors import UnavailableError
from runtime.kafka.admin import Admin, wait_for_broker
from runtime.settings import KafkaSettings
from schemas.topics import STATUS, dispatch_topic, requests_topic

ON_THE_WAY = (requests_topic("normal"), dispatch_topic("email", "normal"), STATUS)
"""Topics that every mail passes."""


def widen(settings: KafkaSettings, partitions: int) -> None:
    """Give them more partitions: nothing must be in them yet."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for future in admin.create_partitions([NewPartitions(name, partitions) for name in ON_THE_WAY]).values():
        future.result(30)
    deadline, ours = time.monotonic() + 60, Admin(settings)
    while any(ours.partition_counts().get(name) != partitions for name in ON_THE_WAY):
        if time.monotonic() > deadline:
            raise UnavailableError(f"the broker does not show {partitions} partitions after a minute")
        time.sleep(0.1)


@contextmanager
def broker(directory: Path, partitions: int | None = None) -> Iterator[KafkaSettings]:
    """It runs on `directory` and ends with the block. `partitions` of what a mail passes; else those of the local profile."""
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
            if partitions is not None:
                widen(settings, partitions)
            yield settings
        finally:
            kafka.terminate()
            book.close()
