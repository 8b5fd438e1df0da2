"""Access tokens of a Google service account: fetched on a thread, shared by all who wait, renewed before they end.

Asking for one is no provider request: nothing is sent by it. google-auth asks up to three times.
May import google-auth and the protocol. Never: a vendor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import google.auth.transport.requests
from google.auth.exceptions import GoogleAuthError, TransportError

from runtime.clock import Clock, Monotonic
from runtime.logs import redact_text
from vendors.sender import ErrorClass

__all__ = ["AccessToken", "GoogleAuthError", "no_token", "token_refusal"]

_LIFETIME_S = 3600
_RENEW_BEFORE_S = 300
_REFUSAL_S = 1.0
"""How long those who wait for an access token share one refusal: one by one each would wait out the timeout."""


class AccessToken:
    """The token of one credential."""

    def __init__(self, credential: Any, timeout_s: float, clock: Clock, monotonic: Monotonic) -> None:
        self._credential, self._timeout_s = credential, timeout_s
        self._clock, self._monotonic = clock, monotonic
        self._renewing = asyncio.Lock()
        self._valid_until = 0
        self._refusal: tuple[float, GoogleAuthError] | None = None

    def expire(self) -> None:
        """Fetch a new one next time: the vendor refused it."""
        self._valid_until = 0

    async def get(self) -> str:
        """Raises GoogleAuthError."""
        async with self._renewing:
            if self._clock() >= self._valid_until:
                if self._refusal is not None and self._monotonic() - self._refusal[0] < _REFUSAL_S:
                    raise self._refusal[1]
                try:
                    # Blocking, once an hour, on a thread.
                    await asyncio.to_thread(self._refresh)
                except GoogleAuthError as exc:
                    self._refusal = self._monotonic(), exc
                    raise
                self._valid_until = self._clock() + 1000 * (_LIFETIME_S - _RENEW_BEFORE_S)
            return str(self._credential.token)

    def _refresh(self) -> None:
        """Raises GoogleAuthError."""
        request = google.auth.transport.requests.Request()
        request.session.trust_env = False  # no proxy of the environment, like every other request of the project
        try:
            self._credential.refresh(partial(request, timeout=self._timeout_s))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as exc:
            raise TransportError(f"unreadable answer ({type(exc).__name__})") from exc  # type: ignore[no-untyped-call]
        finally:
            request.session.close()


def token_refusal(exc: GoogleAuthError) -> str:
    """What Google's token endpoint said: its error and description (RFC 6749 §5.2), or the kind of error."""
    response = next((arg for arg in exc.args if isinstance(arg, Mapping)), {})
    said = [response.get(field) for field in ("error", "error_description")]
    words = ": ".join(redact_text(text)[:100] for text in said if isinstance(text, str) and text.isprintable())
    return f"{type(exc).__name__}: {words}" if words else type(exc).__name__


def no_token(exc: GoogleAuthError) -> tuple[ErrorClass, str]:
    """Without an access token nothing was sent: later, or never with these credentials."""
    error = ErrorClass.TRANSIENT if exc.retryable or isinstance(exc, TransportError) else ErrorClass.ACCOUNT
    return error, f"no access token ({token_refusal(exc)})"
