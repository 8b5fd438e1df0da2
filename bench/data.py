"""The data of every case: the demo's order notification to recipients with a profile. The same numbers give the same bytes.

May import schemas, runtime and the router's function. Never: a random number, a clock read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from processors.router.enrich import RouterViews, enrich_batch
from runtime import ids
from runtime.records import ConsumerRecord, ProducerRecord
from schemas.codec import codec
from schemas.events import NotificationRequest, RecipientProfile
from schemas.topics import RECIPIENTS, TEMPLATES, dispatch_topic, requests_topic

TENANT = "default"
TEMPLATE = "order-shipped"
EXAMPLES = Path(__file__).parent.parent / "examples" / "templates.json"
ORDER: Mapping[str, Any] = {
    "name": "Ada",
    "order": "A-677141",
    "items": [{"title": "éclair tin", "quantity": 5}, {"title": "折り紙セット", "quantity": 3}],
    "total": 243.4,
    "currency": "GBP",
}
STILL = 1_760_000_000_000
"""A moment, in ms, for data that nothing compares with the present."""
_CHUNK = 5_000


CHANNELS = ("email", "sms", "push")
"""The channels that the bare provider serves (bench.providers has the accounts of all)."""


def address(channel: str, user: int) -> str:
    """Of a user on one of CHANNELS."""
    return {"email": f"u{user}@example.org", "sms": f"+4915{user:09d}", "push": f"token-{user}"}[channel]


def profile(tenant: str, user: int) -> RecipientProfile:
    """A recipient with an address on every channel who refuses nothing."""
    return {
        "tenant": tenant,
        "user_id": f"u{user}",
        "name": "Ada",
        "email": address("email", user),
        "phone": address("sms", user),
        "locale": "en",
        "time_zone": None,
        "devices": [{"platform": "fcm", "token": address("push", user), "subscription": None}],
        "channels": {},
        "categories": {},
        "version": 1,
        "updated_at": 1,
    }


@cache
def example() -> dict[str, Any]:
    """The template, as the API takes it: subject, text and HTML of a mail, a text message, a push, four further languages."""
    found: dict[str, Any] = next(it for it in json.loads(EXAMPLES.read_text("utf-8")) if it["id"] == TEMPLATE)
    return found


def template(tenant: str, template_id: str = TEMPLATE) -> bytes:
    """The template, as its topic has it."""
    return codec("Template").encode(
        {
            "tenant": tenant,
            "template_id": template_id,
            "version": 4,
            "category": example()["category"],
            "channels": json.dumps(example()["channels"]).encode(),
            "locales": json.dumps(example()["locales"]).encode(),
            "updated_at": STILL,
        }
    )


def profiles(tenant: str, users: int) -> Iterable[list[ProducerRecord]]:
    """Of that many users, in lists of some thousands."""
    encode = codec("RecipientProfile").encode
    for first in range(0, users, _CHUNK):
        yield [
            ProducerRecord(
                RECIPIENTS, f"{tenant}:u{user}".encode(), encode(cast("dict[str, Any]", profile(tenant, user)))
            )
            for user in range(first, min(users, first + _CHUNK))
        ]


def template_record(tenant: str) -> ProducerRecord:
    """The template, on its topic."""
    return ProducerRecord(TEMPLATES, f"{tenant}:{TEMPLATE}".encode(), template(tenant))


class Values:
    """A view whose values are in a dictionary: encoded ones are decoded on use, as a view of a topic does."""

    def __init__(self, records: Mapping[str, Any], name: str | None = None) -> None:
        self._records = records
        self._decode = codec(name).decode if name else None

    def get(self, key: str) -> Any:
        value = self._records.get(key)
        return self._decode(value) if self._decode and value is not None else value

    def raw(self, key: str) -> Any:
        return self._records.get(key)


def views(users: int, templates: int = 1) -> RouterViews:
    """Reference data of a router without Kafka: so many users and templates, nothing suppressed or cancelled."""
    records = {record.key.decode(): record.value for chunk in profiles(TENANT, users) for record in chunk if record.key}
    names = template_names(templates)
    return RouterViews(
        Values(records, "RecipientProfile"),
        Values({f"{TENANT}:{name}": template(TENANT, name) for name in names}),
        Values({}),
        Values({}),
    )


def template_names(count: int) -> list[str]:
    """The first is the one that every stack knows."""
    return [TEMPLATE, *(f"{TEMPLATE}-{n}" for n in range(1, count))]


def requests(
    count: int,
    users: int,
    now: int,
    *,
    channel: str = "email",
    lane: str = "normal",
    templates: Sequence[str] = (TEMPLATE,),
    mark: str = "",
) -> list[ConsumerRecord]:
    """Requests at `now`, spread over the users and templates; another `mark` gives them other ids."""
    encode, topic = codec("NotificationRequest").encode, requests_topic(lane)
    records = []
    for n in range(count):
        user = n * 7_919 % users  # a prime: neighbours are far apart in every view
        request: NotificationRequest = {
            "notification_id": ids.notification_id(now, TENANT, f"{mark}{n}"),
            "tenant": TENANT,
            "accepted_at": now,
            "user_id": f"u{user}",
            "channels": [channel],
            "template_id": templates[n % len(templates)],
            "data": json.dumps({**ORDER, "order": f"A-{n:07}"}).encode(),
        }
        value = encode(cast("dict[str, Any]", request))
        records.append(ConsumerRecord(topic, n % 4, n, now, f"{TENANT}:u{user}".encode(), value, []))
    return records


def publishable(records: Iterable[ConsumerRecord], topic: str | None = None) -> list[ProducerRecord]:
    """Requests as they are published, to their own topic or to another."""
    return [ProducerRecord(topic or record.topic, record.key, record.value) for record in records]


def messages(count: int, channel: str, now: int, mark: str = "", users: int = 5_000) -> list[ProducerRecord]:
    """What the router makes of the requests for a channel's sender, on its topic."""
    topic = dispatch_topic(channel, "normal")
    users = min(users, count)
    made = enrich_batch(requests(count, users, now, channel=channel, mark=mark), views(users), now)
    return [record for record in made if record.topic == topic]


def digest(records: Iterable[ConsumerRecord | ProducerRecord]) -> str:
    """SHA-256 over topics, keys and values, its first 16 digits: two runs with the same one had the same data."""
    found = hashlib.sha256()
    for record in records:
        for part in (record.topic.encode(), record.key or b"", record.value or b""):
            found.update(len(part).to_bytes(4, "big") + part)
    return found.hexdigest()[:16]


def digest_of(count: int, channel: str = "email", users: int = 5_000) -> str:
    """Of a case's requests, at a still moment and up to ten thousand of them, with their number: a run differs in its times alone."""
    made = requests(min(count, 10_000), users, STILL, channel=channel)
    return numbered(count, made)


def numbered(count: int, sample: Iterable[ConsumerRecord | ProducerRecord]) -> str:
    """Of a set that large, by a sample of it."""
    return hashlib.sha256(f"{count} {digest(sample)}".encode()).hexdigest()[:16]
