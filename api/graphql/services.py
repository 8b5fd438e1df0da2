"""What the API is made of, as the resolvers take it.

May import the services. Never: strawberry, which is imported with the first call only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from api.requests import Authenticator
from producers.acceptance import Acceptance
from producers.reference.service import ReferenceService
from producers.reference.store import ReferenceStore
from runtime.errors import Refusal, RefusedError
from runtime.http.outages import Outages
from runtime.metrics import GRAPHQL_REFUSED
from tracking.control import Control
from tracking.listing import Listing
from tracking.live.hub import Hub
from tracking.preview import Previewer
from tracking.status import Statuses, StatusStore

MAX_SUBSCRIPTIONS = 1_000
"""Of a process: each costs a few tasks and objects, where a stream of /v1/stream costs one."""


class Subscriptions:
    """How many go on in this process."""

    def __init__(self, most: int = MAX_SUBSCRIPTIONS) -> None:
        self._most, self._count = most, 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One more while it lasts. Raises RefusedError."""
        if self._count >= self._most:
            GRAPHQL_REFUSED.labels("subscriptions").inc()
            raise RefusedError(
                Refusal.BUSY, "overloaded", "this process has as many subscriptions as it may: try another"
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


@dataclass(frozen=True, slots=True)
class Services:
    """What the API is made of, shared by its faces."""

    authenticator: Authenticator
    acceptance: Acceptance
    statuses: Statuses
    status_store: StatusStore
    listing: Listing
    control: Control
    reference: ReferenceService
    reference_store: ReferenceStore
    previewer: Previewer
    hub: Hub
    outages: Outages
    subscriptions: Subscriptions = field(default_factory=Subscriptions)
