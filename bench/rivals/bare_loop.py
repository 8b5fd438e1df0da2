"""The least that routes: `python -m bench.rivals.bare_loop BOOTSTRAP TOPIC USERS`.

Consume 500, the router's own function, produce with acks=all, flush, commit. No views of topics, metrics, brakes or health.
"""

from __future__ import annotations

import sys
import time

from confluent_kafka import Consumer, Producer

from bench.data import views
from processors.router.enrich import enrich_batch
from runtime.records import ConsumerRecord
from schemas.topics import requests_topic


def main(bootstrap: str, topic: str, users: int) -> None:
    reference, asked_on = views(users), requests_topic("normal")  # the router takes the lane from the topic
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "acks": "all", "linger.ms": 1})
    consumer.subscribe([topic])
    while True:
        records = [
            ConsumerRecord(asked_on, it.partition(), it.offset(), it.timestamp()[1], it.key(), it.value(), [])
            for it in consumer.consume(500, 0.2)
            if it.error() is None
        ]
        if not records:
            continue
        for out in enrich_batch(records, reference, int(time.time() * 1000)):
            producer.produce(out.topic, out.value, out.key, headers=list(out.headers))
            producer.poll(0)
        producer.flush()
        consumer.commit(asynchronous=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
