"""What the API is made of, as the resolvers take it.

May import the services. Never: strawberry, which is imported with the first call only.
"""

from __future__ import annotations

from dataclasses import dataclass

from api.requests import Authenticator
from producers.acceptance import Acceptance
from producers.reference.service import ReferenceService
from producers.reference.store import ReferenceStore
from runtime.http.outages import Outages
from tracking.control import Control
from tracking.listing import Listing
from tracking.live.hub import Hub
from tracking.preview import Previewer
from tracking.status import Statuses, StatusStore


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
