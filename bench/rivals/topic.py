"""A topic of a rival's own, so that no other contender reads what is meant for it."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic


def make_topic(bootstrap: str, name: str) -> None:
    """Four partitions, as ours have locally; one that is there is left as it is."""
    admin = AdminClient({"bootstrap.servers": bootstrap})  # kept: its end would end the request
    (future,) = admin.create_topics([NewTopic(name, 4, 1)]).values()
    try:
        future.result(30)
    except KafkaException as exc:
        if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
