"""The AsyncAPI 3 document of the topics, out of the catalogue and the Avro schemas; pure.

May import yaml and schemas. Never: a fact that is not in topics.yaml, the manifest or an .avsc.
"""

from __future__ import annotations

from typing import Any

import yaml

from schemas.codec import manifest, read_schema
from schemas.events import RecordName
from schemas.topics import MAX_VALUE_BYTES, Topic, catalogue

ASYNCAPI = "3.1.0"
KAFKA_BINDING = "0.5.0"
AVRO = "application/vnd.apache.avro+json;version=1.9.0"
_HEAD = "# Written by `heliograph schemas asyncapi`; a test compares.\n"
_IN_BINDING = ("retention.ms", "delete.retention.ms")
"""The topic settings that the Kafka binding defines; schemas/topics.yaml and `heliograph topics apply` have the rest."""


def document() -> dict[str, Any]:
    """The document as data."""
    topics = catalogue().values()
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Heliograph",
            "version": "1",
            "description": (
                "The Kafka topics of the notification pipeline. Publish to `notify.requests.<lane>.v1` to notify; subscribe to "
                "`notify.status.v1` to follow deliveries; the topics tagged `internal` may change with any release.\n\n"
                "Every value is the byte 0, the 4-byte big-endian schema id, then the Avro body; at most "
                f"{MAX_VALUE_BYTES} bytes are read. Partitions are chosen by murmur2 of the key. Partition counts are the "
                "production defaults."
            ),
        },
        "defaultContentType": "application/avro",
        "servers": {
            "local": {
                "host": "127.0.0.1:9092",
                "protocol": "kafka",
                "description": "The broker of docker-compose.yml; `heliograph up` prints its own.",
            }
        },
        "channels": {topic.name: _channel(topic) for topic in topics},
        "operations": {
            f"{action}.{topic.name}": _operation(action, topic) for topic in topics for action in ("send", "receive")
        },
        "components": {"messages": {name: _message(name) for name in manifest()}},
    }


def text() -> str:
    """The document as YAML, as stored in docs/asyncapi.yaml."""
    return _HEAD + yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # the same tag in two places is two tags to a reader


def _channel(topic: Topic) -> dict[str, Any]:
    config: dict[str, Any] = {"cleanup.policy": topic.policy.split(",")}
    config |= {key: int(topic.config[key]) for key in _IN_BINDING if key in topic.config}
    return {
        "address": topic.name,
        "description": topic.description,
        "messages": {topic.record: {"$ref": f"#/components/messages/{topic.record}"}},
        "tags": [{"name": "public" if topic.public else "internal"}],
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions["default"],
                "topicConfiguration": config,
                "bindingVersion": KAFKA_BINDING,
            }
        },
    }


def _operation(action: str, topic: Topic) -> dict[str, Any]:
    who = topic.producers if action == "send" else topic.consumers
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "summary": f"{'Published' if action == 'send' else 'Read'} by: {', '.join(who)}.",
        "messages": [{"$ref": f"#/channels/{topic.name}/messages/{topic.record}"}],
    }


def _message(name: RecordName) -> dict[str, Any]:
    topics = [topic for topic in catalogue().values() if topic.record == name]
    schema = read_schema(name)
    return {
        "name": name,
        "title": name,
        "summary": schema["doc"],
        "contentType": "application/avro",
        "headers": _headers(public=topics[0].public),
        "payload": {"schemaFormat": AVRO, "schema": schema},
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": topics[0].key},
                "schemaIdLocation": "payload",
                "schemaIdPayloadEncoding": "confluent",
                "schemaLookupStrategy": "TopicNameStrategy",
                "bindingVersion": KAFKA_BINDING,
            }
        },
        "x-schema-id": manifest()[name]["id"],
    }


def _headers(*, public: bool) -> dict[str, Any]:
    """CloudEvents in binary mode on public topics; all optional on what others publish."""
    names = {"ce_id": "Id of the event.", "traceparent": "W3C trace context."}
    if public:
        names |= {
            "ce_type": "Type of the event.",
            "ce_source": "Who published it.",
            "ce_time": "RFC 3339 time.",
            "ce_specversion": "1.0",
            "content-type": "application/avro",
        }
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": about} for name, about in names.items()},
    }
