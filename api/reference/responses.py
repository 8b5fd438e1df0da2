"""What the routes of the reference data share: ids out of paths, 404, and the answer to a write.

May import starlette and producers. Never: a route, an entity.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from api.reference.propagation import Propagation
from producers.addresses import has_control
from producers.reference.store import NotFoundError, Written
from runtime.http.problems import FieldError, Problem

Found = TypeVar("Found")


class WriteResponses:
    """Answers to writes: only once the relay has published them, so that every process may know of them soon."""

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation

    async def written(self, written: Written, body: dict[str, Any], location: str | None = None) -> JSONResponse:
        """201 with the location for what is new, else 200."""
        await self._propagation.wait(written.outbox_id)
        headers = {"Location": location} if location and written.created else None
        return JSONResponse(body, 201 if written.created else 200, headers)

    async def deleted(self, written: Written) -> Response:
        """204."""
        await self._propagation.wait(written.outbox_id)
        return Response(status_code=204)


def clean_id(path_id: str) -> str:
    """An id out of the path: PostgreSQL's text takes no NUL, and no entity's id has a control character. Raises Problem (404)."""
    if has_control(path_id):
        raise missing("id")
    return path_id


def check_same_id(body_id: str | None, path_id: str) -> None:
    """Raises Problem (400) for a body that names another id than its path."""
    if body_id is not None and body_id != path_id:
        why = "id differs from the one in the path"
        raise Problem(400, "invalid_request", why, errors=[FieldError("/id", why, "invalid_value")])


def missing(what: str) -> Problem:
    """404."""
    return Problem(404, "not_found", f"there is no such {what}")


async def or_404(reading: Awaitable[Found], what: str) -> Found:
    """What the store returns. Raises Problem (404) where it finds nothing."""
    try:
        return await reading
    except NotFoundError as exc:
        raise missing(what) from exc
