"""What the clients of Kafka share: their settings, and what ends a process.

May import confluent_kafka. Never: a record.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from confluent_kafka import KafkaError

from runtime.settings import KafkaSettings

log = logging.getLogger("kafka")

Partition = tuple[str, int]
"""(topic, partition)"""
EXIT_FATAL = 70
"""EX_SOFTWARE: the supervisor restarts the process, which takes over from what is committed."""


def ignore_error(_: KafkaError) -> None:
    """librdkafka retries connections without limit, and trouble shows as lag; a line per refused connect would only add noise."""


def client_config(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": f"{client_id}-{os.getpid()}",
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "retry.backoff.ms": 20,
        "retry.backoff.max.ms": 200,
        "socket.keepalive.enable": True,
        "log_level": 2,
        "allow.auto.create.topics": False,
        **settings.client_options(),
    }
