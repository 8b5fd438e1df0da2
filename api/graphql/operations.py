"""What operators ask for, of one tenant: accounting by the hour, failures, and whose key asks.

May import strawberry. Never: a question to a store.
"""

from __future__ import annotations

import strawberry

from api.graphql.scalars import Channel, DateTime


@strawberry.type(description="Whose key this is.")
class Viewer:
    tenant: str
    key_id: strawberry.ID


@strawberry.type(
    description="What was accepted in an hour, by what became of it: accepted is the sum of all but residual."
)
class AccountingHour:
    hour: DateTime
    accepted: int
    unknown: int
    dead_lettered: int
    simulated: int
    skipped: int
    suppressed: int
    expired: int
    cancelled: int
    rejected: int
    failed: int
    sent: int
    undelivered: int
    delivered: int
    bounced: int
    in_flight: int
    residual: int


@strawberry.type(description="Messages that failed alike.")
class Failure:
    channel: Channel | None
    provider: str | None
    state: str
    reason: str | None
    why: str
    failures: int
    last_at: DateTime
    example_detail: str | None
    example_notification_id: strawberry.ID
