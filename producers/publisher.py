"""The library a service publishes with: `publish` returns when the broker has the notification, and not before.

    with Publisher(settings.kafka, tenant="shop", source="orders") as publisher:
        publisher.publish({"to": {"user_id": "u1"}, "template": {"id": "order-shipped"}, "data": {"order": "A1"}})

May import schemas and runtime. Never: PostgreSQL, a template look-up (the router rejects unknown ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import Any, Self

from producers.notification import Notification, check_key, request_record, to_milliseconds
from runtime.clock import Clock, system_clock
from runtime.kafka.producer import Producer
from runtime.metrics import ACCEPTED
from runtime.records import ProducerRecord
from runtime.settings import KafkaSettings
from schemas.identity import check_tenant

MAX_BATCH = 1_000
"""Records that `publish_many` holds before it waits: at most 1 MB each, about 1 kB as a rule."""

Body = Notification | Mapping[str, Any]
"""A notification, or the body of POST /v1/notifications as a dict."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A notification with what makes its id: `accepted_at` in milliseconds or as an aware datetime."""

    notification: Body
    idempotency_key: str | None = None
    accepted_at: int | datetime | None = None
    correlation_id: str | None = None


class _Requests:
    """Notifications to records; pure but for the clock."""

    def __init__(self, tenant: str, source: str, clock: Clock) -> None:
        self._tenant = check_tenant(tenant)
        self._source = source
        self._clock = clock

    def record(self, publication: Publication) -> tuple[str, str, ProducerRecord]:
        """(id, lane, record). Raises ValueError (pydantic's ValidationError is one) for what may not be published."""
        body = publication.notification
        notification = body if isinstance(body, Notification) else Notification.model_validate(dict(body))
        key = publication.idempotency_key
        if key is not None and notification.request_id is not None and key != notification.request_id:
            raise ValueError("idempotency_key and request_id differ: give one of them")
        key = notification.request_id if key is None else check_key(key)
        accepted_at = publication.accepted_at
        if key is not None and accepted_at is None:
            raise ValueError("a key needs accepted_at, the event's own time: a retry must make the same id")
        if accepted_at is None:
            accepted_at = self._clock()
        elif isinstance(accepted_at, datetime):
            accepted_at = int(to_milliseconds(accepted_at))
        request = notification.to_request(
            self._tenant,
            accepted_at,
            idempotency_key=key,
            correlation_id=publication.correlation_id,
            source=self._source,
        )
        return request["notification_id"], notification.priority, request_record(request)


def _publication(item: Body | Publication) -> Publication:
    return item if isinstance(item, Publication) else Publication(item)


def _count(lanes: Iterable[str]) -> None:
    for lane in lanes:
        ACCEPTED.labels(lane, "publisher").inc()


def _batches(items: Iterable[Body | Publication]) -> Iterator[list[Publication]]:
    iterator = iter(items)
    while batch := [_publication(item) for item in islice(iterator, MAX_BATCH)]:
        yield batch


class Publisher:
    """Publishes notifications of one tenant. `source` says who publishes; it is kept with every notification."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        tenant: str,
        source: str = "publisher",
        timeout_s: float = 30,
        clock: Clock = system_clock,
        producer: Producer | None = None,
    ) -> None:
        self._requests = _Requests(tenant, source, clock)
        self._producer = producer or Producer(settings, client_id="publisher", delivery_timeout_s=timeout_s)

    def publish(
        self,
        notification: Body,
        *,
        idempotency_key: str | None = None,
        accepted_at: int | datetime | None = None,
        correlation_id: str | None = None,
    ) -> str:
        """Publish one and return its id once every in-sync replica has it.

        With a key and the event's own time a retry makes the same id, and so one delivery. Raises PublishError when the
        broker does not acknowledge, ValueError for a notification that is not valid.
        """
        publication = Publication(notification, idempotency_key, accepted_at, correlation_id)
        notification_id, lane, record = self._requests.record(publication)
        self._producer.publish([record])
        _count([lane])
        return notification_id

    def publish_many(self, notifications: Iterable[Body | Publication]) -> list[str]:
        """Publish all and return their ids, waiting once per batch of 1,000; the same errors as `publish`.

        On an error the batches before it are published.
        """
        published: list[str] = []
        for batch in _batches(notifications):
            made = [self._requests.record(publication) for publication in batch]
            self._producer.publish([record for _, _, record in made])
            _count(lane for _, lane, _ in made)
            published += [notification_id for notification_id, _, _ in made]
        return published

    def close(self) -> None:
        """Flush and disconnect."""
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class AsyncPublisher:
    """Publisher for code that runs in an event loop; the same promises."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        tenant: str,
        source: str = "publisher",
        timeout_s: float = 30,
        clock: Clock = system_clock,
        producer: Producer | None = None,
    ) -> None:
        self._requests = _Requests(tenant, source, clock)
        self._producer = producer or Producer(settings, client_id="publisher", delivery_timeout_s=timeout_s)

    async def publish(
        self,
        notification: Body,
        *,
        idempotency_key: str | None = None,
        accepted_at: int | datetime | None = None,
        correlation_id: str | None = None,
    ) -> str:
        """See Publisher.publish."""
        publication = Publication(notification, idempotency_key, accepted_at, correlation_id)
        notification_id, lane, record = self._requests.record(publication)
        await self._producer.send([record])
        _count([lane])
        return notification_id

    async def publish_many(self, notifications: Iterable[Body | Publication]) -> list[str]:
        """See Publisher.publish_many."""
        published: list[str] = []
        for batch in _batches(notifications):
            made = [self._requests.record(publication) for publication in batch]
            await self._producer.send([record for _, _, record in made])
            _count(lane for _, lane, _ in made)
            published += [notification_id for notification_id, _, _ in made]
        return published

    def close(self) -> None:
        """Flush and disconnect."""
        self._producer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()
