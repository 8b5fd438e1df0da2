"""What a resolver works with: the services, who is calling, and the loaders of the operation.

May import the services. Never: a type of the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from api.graphql.loaders import Loaders
from api.graphql.services import Services
from producers.reference.keys import Caller


@dataclass(slots=True)
class Context:
    """Of one operation."""

    services: Services
    caller: Caller
    request_id: str
    correlation_id: str
    traceparent: str | None = None
    cut: Callable[[], None] = lambda: None
    """Ends the connection without a word: its reader does not read."""
    loaders: Loaders = field(init=False)

    def __post_init__(self) -> None:
        self.loaders = self.new_loaders()

    @property
    def tenant(self) -> str:
        """Whose data is answered from."""
        return self.caller.tenant

    def new_loaders(self) -> Loaders:
        """Loaders that know nothing yet: an operation that goes on reads each time what is true by then."""
        return Loaders(self.services.status_store, self.services.reference_store, self.caller.tenant)
