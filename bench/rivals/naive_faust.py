"""An agent as Faust's guide shows it: `python -m bench.rivals.naive_faust BOOTSTRAP TOPIC USERS DIRECTORY`.

One event at a time, the router's own function, an awaited send for each record that comes of it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import faust

from bench.data import views
from processors.router.enrich import enrich_batch
from runtime.records import ConsumerRecord
from schemas.topics import requests_topic


def main(bootstrap: str, topic: str, users: int, directory: str) -> None:
    reference, asked_on = views(users), requests_topic("normal")  # the router takes the lane from the topic
    app = faust.App(
        topic.replace(".", "-"),
        broker=f"kafka://{bootstrap}",
        datadir=directory,
        web_enabled=False,
        topic_disable_leader=True,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
    )
    source = app.topic(topic, key_type=bytes, value_type=bytes)
    targets: dict[str, Any] = {}

    @app.agent(source)
    async def route(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            record = ConsumerRecord(asked_on, message.partition, message.offset, 0, message.key, message.value, [])
            for out in enrich_batch([record], reference, int(time.time() * 1000)):
                if out.topic not in targets:
                    targets[out.topic] = app.topic(out.topic, key_type=bytes, value_type=bytes)
                await targets[out.topic].send(key=out.key, value=out.value, headers=list(out.headers))

    faust.Worker(app, loglevel="error").execute_from_commandline()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
