"""The answer to a write of reference data.

May import starlette and producers. Never: a route, an entity.
"""

from __future__ import annotations

from starlette.responses import JSONResponse

from producers.reference.service import Done


def done(written: Done, location: str | None = None) -> JSONResponse:
    """201 with the location for what is new, else 200."""
    headers = {"Location": location} if location and written.created else None
    return JSONResponse(written.body, 201 if written.created else 200, headers)
