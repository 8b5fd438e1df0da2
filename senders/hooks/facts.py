"""Records of notify.status.v1 as what an endpoint is told; pure.

    {"type": "message.bounced", "timestamp": "2026-03-01T12:00:00.000Z", "data": {"notification_id": …, "state": …}}

A fact about a notification as a whole is `notification.<state>`, and has neither message nor channel. Never in it: an address, a
user, a content, words of a provider.
May import schemas. Never: an endpoint's URL or secret.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import to_json

from runtime import ids
from runtime.metrics import HOOK_SKIPPED
from runtime.records import ConsumerRecord
from runtime.status import rfc3339
from schemas.codec import DecodeError, codec
from schemas.events import Endpoint

MAX_TEXT_CHARS = 255
"""Of a text in a body: other publishers may write any length."""
_read = codec("DeliveryStatus").reader(
    "event_id",
    "notification_id",
    "message_id",
    "tenant",
    "channel",
    "lane",
    "state",
    "reason",
    "attempt",
    "possible_duplicate",
    "template_id",
    "template_version",
    "occurred_at",
    "correlation_id",
    "category",
)


class Fact(NamedTuple):
    """What is told, and what filters look at."""

    offset: int
    timestamp: int
    """When Kafka took it, ms."""
    event_id: str
    notification_id: str
    state: str
    channel: str | None
    category: str | None
    body: bytes


@dataclass(slots=True)
class Chunk:
    """The facts of a partition's offsets [start, end), in their order, of tenants that had endpoints when it was read."""

    start: int
    end: int
    tenants: frozenset[str]
    of_tenant: dict[str, list[Fact]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many facts it holds."""
        return sum(map(len, self.of_tenant.values()))


def chunk_of(records: Sequence[ConsumerRecord], start: int, end: int, tenants: frozenset[str]) -> Chunk:
    """Records of one partition that were read at offsets [start, end). One that is no fact is counted and left out."""
    found: defaultdict[str, list[Fact]] = defaultdict(list)
    for record in records:
        try:
            read = _read(record.value)
            if read[3] in tenants:
                found[read[3]].append(_fact(record, *read))
        except DecodeError:
            HOOK_SKIPPED.labels("undecodable").inc()  # the sink keeps it among the dead letters
        except ValueError:  # an id that is no UUID
            HOOK_SKIPPED.labels("unusable").inc()
    return Chunk(start, end, tenants, dict(found))


def _fact(
    record: ConsumerRecord,
    event_id: str,
    notification_id: str,
    message_id: str | None,
    tenant: str,
    channel: str | None,
    lane: str,
    state: str,
    reason: str | None,
    attempt: int,
    possible_duplicate: bool,
    template_id: str | None,
    template_version: int | None,
    occurred_at: int,
    correlation_id: str | None,
    category: str | None,
) -> Fact:
    ids.bytes_of(notification_id)
    event_id = ids.canonical(event_id)
    data = {
        "notification_id": notification_id,
        "message_id": message_id,
        "event_id": event_id,
        "state": _short(state),
        "reason": _short(reason),
        "channel": _short(channel),
        "category": _short(category),
        "lane": _short(lane),
        "attempt": attempt,
        "possible_duplicate": possible_duplicate,
        "template_id": _short(template_id),
        "template_version": template_version,
        "correlation_id": _short(correlation_id),
    }
    return Fact(
        record.offset,
        record.timestamp,
        event_id,
        notification_id,
        state,
        channel,
        category,
        body_of(f"{'notification' if message_id is None else 'message'}.{data['state']}", occurred_at, data),
    )


def body_of(kind: str, at: int, data: dict[str, Any]) -> bytes:
    """The body of a request to an endpoint, as the specification shapes it; `at` in ms."""
    return to_json({"type": kind, "timestamp": rfc3339(at), "data": data})


def _short(text: str | None) -> str | None:
    return text if text is None or len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS]


class Wanted:
    """The facts that an endpoint wants. What a filter does not name is all; a fact without a channel or category passes no
    filter that names some."""

    __slots__ = ("_categories", "_channels", "_since", "_states")

    def __init__(self, endpoint: Endpoint) -> None:
        self._states = frozenset(endpoint["states"]) or None
        self._channels = frozenset(endpoint["channels"]) or None
        self._categories = frozenset(endpoint["categories"]) or None
        self._since = endpoint["since"]

    def __contains__(self, fact: object) -> bool:
        assert isinstance(fact, Fact)
        return (
            (self._states is None or fact.state in self._states)
            and (self._channels is None or fact.channel in self._channels)
            and (self._categories is None or fact.category in self._categories)
            and fact.timestamp >= self._since
        )
