"""Publishes one notification with Heliograph's own library, in the words of POST /v1/notifications:

    python publish.py 127.0.0.1:9092 u1 order-shipped '{"order": "A1"}'

It prints the id once every in-sync replica has the record. May import producers and runtime; a codec, a key or a topic never
enters here: the library has them.
"""

from __future__ import annotations

import json
import sys

from producers.publisher import Publisher
from runtime.settings import KafkaSettings


def main(bootstrap: str, user: str, template: str, data: str = "{}") -> None:
    with Publisher(KafkaSettings(bootstrap_servers=bootstrap), tenant="default", source="python-example") as publisher:
        notification = {"to": {"user_id": user}, "template": {"id": template}, "data": json.loads(data)}
        # With idempotency_key= and accepted_at=, the event's own time, a retry makes the same id and one delivery.
        sys.stdout.write(publisher.publish(notification) + "\n")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: publish.py BOOTSTRAP USER_ID TEMPLATE_ID [DATA]")
    main(*sys.argv[1:])
