"""Who may watch what: an API key watches its tenant, a stream token what it was made for.

A stream token is for browsers, which cannot keep a key and whose EventSource sets no header. It names its tenant, its key, what may
be watched and until when, under an HMAC: nothing is stored, and it ends with its key.
May import producers. Never: a hub.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple, Self
from uuid import UUID

from pydantic import Field, SecretStr, model_validator

from api.requests import Authenticator
from producers.notification import Strict, UserId
from producers.reference.keys import Caller, Keys
from runtime.clock import Clock, system_clock
from runtime.http.problems import Problem

MAX_IDS = 100
MAX_TTL_S = 600
MAX_TOKEN_CHARS = 8_192
_PREFIX = "hgs_"
_MAC_BYTES = 24
_PURPOSE = b"heliograph stream token 1"


class NewToken(Strict):
    """What a browser may watch: notifications, or all of a user's; and for how long."""

    notification_ids: (
        Annotated[list[Annotated[UUID, Field(strict=False)]], Field(min_length=1, max_length=MAX_IDS)] | None
    ) = None
    user_id: UserId | None = None
    ttl_s: Annotated[int, Field(ge=1, le=MAX_TTL_S)] = MAX_TTL_S

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.notification_ids is None) == (self.user_id is None):
            raise ValueError("give notification_ids or user_id, one of them")
        return self


class Access(NamedTuple):
    """What may be watched: all of the tenant's unless `ids` or `user_id` say less; until `expires_at` (ms) where that is given."""

    tenant: str
    key_id: str
    ids: frozenset[str] | None = None
    user_id: str | None = None
    expires_at: int | None = None


class StreamTokens:
    """Makes and reads tokens, under a key that is made of the pepper."""

    def __init__(self, pepper: SecretStr, clock: Clock = system_clock) -> None:
        self._key = hmac.digest(pepper.get_secret_value().encode(), _PURPOSE, hashlib.sha256)
        self._clock = clock

    def issue(self, caller: Caller, ids: Sequence[UUID] | None, user_id: str | None, ttl_s: int) -> tuple[str, int]:
        """(token, when it ends in ms)."""
        expires_at = self._clock() + ttl_s * 1_000
        raw_ids = base64.b64encode(b"".join(one.bytes for one in ids)).decode() if ids else None
        claims = [caller.tenant, caller.key_id, expires_at, raw_ids, user_id]
        payload = json.dumps(claims, ensure_ascii=False, separators=(",", ":")).encode()
        return _PREFIX + base64.urlsafe_b64encode(self._mac(payload) + payload).decode().rstrip("="), expires_at

    def read(self, token: str) -> Access | None:
        """None for a token that was not made here, or has ended."""
        if not token.startswith(_PREFIX) or len(token) > MAX_TOKEN_CHARS:
            return None
        text = token.removeprefix(_PREFIX)
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            return None
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(payload)):
            return None
        tenant, key_id, expires_at, raw_ids, user_id = json.loads(payload)  # ours: the HMAC says so
        if expires_at <= self._clock():
            return None
        ids = None
        if raw_ids is not None:
            packed = base64.b64decode(raw_ids)
            ids = frozenset(str(UUID(bytes=packed[i : i + 16])) for i in range(0, len(packed), 16))
        return Access(tenant, key_id, ids, user_id, expires_at)

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, hashlib.sha256)[:_MAC_BYTES]


class LiveAuthenticator:
    """Finds what the caller of a stream may watch."""

    def __init__(
        self, authenticator: Authenticator, tokens: StreamTokens, keys: Keys, clock: Clock = system_clock
    ) -> None:
        self._authenticator, self._tokens, self._keys, self._clock = authenticator, tokens, keys, clock

    async def access(self, authorization: bytes | None, token: str | None) -> Access:
        """By the key of the header, else by a stream token. Raises Problem: 401, 429, 503."""
        if authorization is None and token is not None:
            return await self.token_access(token)
        caller = await self._authenticator.caller(authorization)
        return Access(caller.tenant, caller.key_id)

    async def still_holds(self, access: Access) -> bool:
        """Whether its key is not revoked and its token has not ended, for a connection that outlives both."""
        ended = access.expires_at is not None and access.expires_at <= self._clock()
        return not ended and not await self._keys.revoked_of({access.key_id})

    async def token_access(self, token: str) -> Access:
        """By a stream token; one whose key is revoked is none. Raises Problem: 401, 429."""
        found = self._tokens.read(token)
        if found is None or await self._keys.revoked_of({found.key_id}):
            raise Problem(
                401,
                "unauthenticated",
                "the stream token is not valid, or has ended: ask for another",
                headers={"WWW-Authenticate": "Bearer"},
            )
        self._authenticator.take(found.key_id)
        return found


def origin_headers(headers: Mapping[bytes, bytes], allowed: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """What lets the page of an allowed origin read the answer; never with credentials."""
    if not allowed:
        return []
    origin = headers.get(b"origin", b"").decode("latin-1").lower()
    found = [(b"vary", b"Origin")]
    if origin in allowed:
        found.append((b"access-control-allow-origin", headers[b"origin"]))
    return found
