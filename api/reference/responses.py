"""The answer to a write of reference data.

May import starlette and producers. Never: a route, an entity.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from producers.reference.propagation import Propagation
from producers.reference.service import Done
from producers.reference.store import Written


def done(written: Done, location: str | None = None) -> JSONResponse:
    """201 with the location for what is new, else 200."""
    headers = {"Location": location} if location and written.created else None
    return JSONResponse(written.body, 201 if written.created else 200, headers)


class WriteResponses:
    """Answers to writes of a store that no service stands before: once the relay has published them."""

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation

    async def written(self, written: Written, body: dict[str, Any], location: str | None = None) -> JSONResponse:
        """See `done`."""
        await self._propagation.wait(written.outbox_id)
        return done(Done(body, written.created), location)

    async def deleted(self, written: Written) -> Response:
        """204."""
        await self._propagation.wait(written.outbox_id)
        return Response(status_code=204)
