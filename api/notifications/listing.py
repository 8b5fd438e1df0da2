"""GET /v1/notifications: a page of a tenant's notifications, and the cursor of the next.

May import fastapi and tracking. Never: a tenant that is not the key's.
"""

# No `from __future__ import annotations` here: FastAPI could not see the dependency that the router is given.
import base64
import binascii
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from starlette.responses import JSONResponse

from api.caller import Authenticate, Caller
from runtime.errors import FieldError
from runtime.http.problems import Problem
from schemas.events import states
from tracking.listing import DEFAULT_LIMIT, MAX_LIMIT, Filters, Listing
from tracking.status import PREFIX


def cursor_of(last: UUID) -> str:
    """The id as callers hand it back."""
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def read_cursor(text: str) -> UUID:
    """Raises Problem (400)."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return UUID(bytes=raw)
    except (ValueError, binascii.Error) as exc:
        why = "not a cursor of this list: take next_cursor of the page before"
        raise Problem(400, "invalid_cursor", why, errors=[FieldError("", f"cursor: {why}", "invalid_cursor")]) from exc


def listing_router(listing: Listing, authenticate: Authenticate) -> APIRouter:
    """The route."""
    router = APIRouter(tags=["notifications"])
    Who = Annotated[Caller, Depends(authenticate)]

    @router.get(PREFIX, summary="Notifications, the newest first")
    async def list_notifications(
        caller: Who,
        status: Annotated[str, Query(description="Notifications that have this status now.", max_length=32)] = "",
        user_id: Annotated[str, Query(max_length=255)] = "",
        tag: Annotated[str, Query(max_length=64)] = "",
        cursor: Annotated[str, Query(description="next_cursor of the page before.", max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    ) -> JSONResponse:
        """What was accepted in the last seconds may be missing until analytics have it."""
        if status and status not in states().rank:
            why = f"status is one of {', '.join(sorted(states().rank))}"
            raise Problem(400, "invalid_parameter", why, errors=[FieldError("", why, "invalid_parameter")])
        before = read_cursor(cursor) if cursor else None
        page = await listing.page(caller.tenant, Filters(status, user_id, tag), before, limit)
        following = cursor_of(page.next_id) if page.next_id else None
        return JSONResponse({"entries": page.entries, "next_cursor": following})

    return router
