"""POST /v1/stream-tokens: what lets a browser watch, for some minutes.

May import fastapi. Never: what a token holds (access.py).
"""

# No postponed annotations here: FastAPI must see the dependency, which is made inside a function.
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import JSONResponse

from api.caller import Authenticate
from api.live.access import NewToken, StreamTokens
from api.requests import read_model
from producers.reference.keys import Caller
from runtime.status import rfc3339


def tokens_router(tokens: StreamTokens, authenticate: Authenticate) -> APIRouter:
    """The route."""
    router = APIRouter(prefix="/v1", tags=["live"])
    Who = Annotated[Caller, Depends(authenticate)]

    @router.post("/stream-tokens", status_code=201, summary="Let a browser watch")
    async def create_stream_token(request: Request, caller: Who) -> JSONResponse:
        """A token for `?access_token=` of /v1/stream, or the `auth` frame of /v1/ws. It ends with its time or with its key."""
        body = await read_model(request, NewToken)
        token, expires_at = tokens.issue(caller, body.notification_ids, body.user_id, body.ttl_s)
        return JSONResponse({"token": token, "expires_at": rfc3339(expires_at)}, 201, {"Cache-Control": "no-store"})

    return router
