"""The signature of Standard Webhooks: HMAC-SHA256 over id, time and body, one for each secret that holds.

    headers = Signer([secret, previous]).headers(webhook_id, at, body)     at in milliseconds since 1970

May import standardwebhooks. Never: a request, a secret in an error.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from standardwebhooks.webhooks import Webhook

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64
"""Of a key, by the specification."""
_NEW_BYTES = 32


def new_secret() -> str:
    """A secret as the specification writes it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_NEW_BYTES)).decode()


def is_secret(text: str) -> bool:
    """Whether a text is a secret as the specification writes it."""
    if not text.startswith(PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return MIN_BYTES <= len(key) <= MAX_BYTES


class Signer:
    """Signs with each of its secrets, the newest first."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._signers = [Webhook(secret) for secret in secrets]

    def headers(self, webhook_id: str, now: int, body: bytes) -> dict[str, str]:
        """The three headers of a request that is sent now (ms)."""
        seconds = now // 1000
        at, text = datetime.fromtimestamp(seconds, UTC), body.decode()
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": " ".join([signer.sign(webhook_id, at, text) for signer in self._signers]),
        }
