"""Publishes one NotificationRequest with nothing of the project but the schema: confluent-kafka and its AvroSerializer.

    pip install -r requirements.txt
    python publish.py 127.0.0.1:9092 u1 order-shipped '{"order": "A1"}'

It prints the id once every in-sync replica has the record. With SCHEMA_REGISTRY set to a registry's address the schema and
its id are the registry's (`heliograph schemas register` put them there); without, they come from the schemas folder (SCHEMAS,
else ../../../schemas). May import confluent_kafka; heliograph's packages never enter here.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from confluent_kafka import Producer  # noqa: TID251
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient  # noqa: TID251
from confluent_kafka.schema_registry.avro import AvroSerializer  # noqa: TID251
from confluent_kafka.serialization import MessageField, SerializationContext  # noqa: TID251

TENANT = "default"
TOPIC = "notify.requests.normal.v1"


def serializer() -> Any:
    """Never registers: a producer that may register can change the schema for every reader."""
    fixed = {"auto.register.schemas": False, "subject.name.strategy.type": "TOPIC"}
    url = os.environ.get("SCHEMA_REGISTRY")
    if url:
        return AvroSerializer(SchemaRegistryClient({"url": url}), conf={**fixed, "use.latest.version": True})
    folder = Path(os.environ.get("SCHEMAS", Path(__file__).parents[3] / "schemas"))
    entry = json.loads((folder / "manifest.json").read_text("utf-8"))["NotificationRequest"]
    schema = Schema((folder / entry["file"]).read_text("utf-8"), "AVRO")
    # No registry runs: the serializer asks its in-memory client, which counts ids from 1. Ids of the manifest are fixed, and this
    # is the record with id 1; another record would need as many registered before it.
    client = SchemaRegistryClient.new_client({"url": "mock://manifest"})
    if client.register_schema(f"{TOPIC}-value", schema) != entry["id"]:
        sys.exit("the id of NotificationRequest is not what the in-memory client gives")
    return AvroSerializer(client, schema, conf={**fixed, "use.schema.id": entry["id"]})


def uuid7(milliseconds: int) -> str:
    """A UUIDv7: the time in 48 bits, then version, variant and chance."""
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(UUID(int=value))


def main(bootstrap: str, user: str, template: str, data: str = "{}") -> None:
    accepted_at = time.time_ns() // 1_000_000
    request = {
        "notification_id": uuid7(accepted_at),  # its time must be accepted_at
        "tenant": TENANT,
        "accepted_at": accepted_at,
        "user_id": user,
        "template_id": template,
        "data": data.encode(),  # this writer takes no default for bytes; the others fill in by themselves
        "source": "confluent-example",
    }
    failed: list[Any] = []
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            # librdkafka's own default is CRC32: the same recipient would land on another partition than with Java's clients.
            "partitioner": "murmur2_random",
        }
    )
    producer.produce(
        TOPIC,
        key=f"{TENANT}:{user}".encode(),
        value=serializer()(request, SerializationContext(TOPIC, MessageField.VALUE)),
        on_delivery=lambda error, _: failed.append(error) if error else None,
    )
    if producer.flush(30) or failed:
        sys.exit(f"not acknowledged: {failed or 'no answer'}; publish again with the same id")
    sys.stdout.write(f"{request['notification_id']}\n")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: publish.py BOOTSTRAP USER_ID TEMPLATE_ID [DATA]")
    main(*sys.argv[1:])
