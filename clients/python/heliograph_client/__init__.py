"""A client of Heliograph's API: send, wait, watch, reference data.

    Client, AsyncClient     the same methods, called or awaited
    ApiError                the API refused; UnavailableError: no answer; both are a HeliographError
    LiveEvent               what `watch` yields

`heliograph_client.types` has the JSON as typed dictionaries.
"""

from heliograph_client.async_client import AsyncClient
from heliograph_client.calls import ApiError, HeliographError, UnavailableError
from heliograph_client.client import Client
from heliograph_client.live import LiveEvent

__all__ = ["ApiError", "AsyncClient", "Client", "HeliographError", "LiveEvent", "UnavailableError"]
