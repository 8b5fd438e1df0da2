"""Who sends, to a push service (VAPID, RFC 8292): a token for each service, signed by the vendor's library and used for hours.

The only module that imports py_vapid; nothing of it sends.
May import runtime. Never: a subscription.
"""

from __future__ import annotations

from collections import OrderedDict

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from py_vapid import Vapid02

from runtime.clock import Clock
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings

LIFETIME_S = 12 * 3_600
"""Of a token; a push service takes none for more than a day ahead (RFC 8292 §2)."""
RENEW_AFTER_S = 6 * 3_600
MAX_KEPT = 256
"""Tokens kept: hosts below a wildcard are whatever a stranger's subscription names."""


def read_key(provider: ProviderSettings, text: str) -> Vapid02:
    """The signer of a key: PEM, or the 32 bytes (or DER) as base64url that generators print. Raises SettingsError."""
    try:
        if text.lstrip().startswith("-----BEGIN"):
            vapid = Vapid02(load_pem_private_key(text.encode(), None))
        else:
            vapid = Vapid02.from_string(text.strip())
        key = vapid.private_key
    except (ValueError, TypeError, IndexError) as exc:
        raise SettingsError(
            f"provider {provider.name}: private_key is neither PEM nor base64url ({type(exc).__name__})"
        ) from None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise SettingsError(f"provider {provider.name}: private_key is not a P-256 key")
    return vapid


class VapidTokens:
    """The Authorization header for each push service."""

    def __init__(self, vapid: Vapid02, subject: str, clock: Clock) -> None:
        self._vapid, self._subject, self._clock = vapid, subject, clock
        self._signed: OrderedDict[str, tuple[int, str]] = OrderedDict()

    def authorization(self, audience: str) -> str:
        """The header's value for a service, by the origin of its endpoints."""
        now = self._clock() // 1000
        signed_at, header = self._signed.get(audience, (0, ""))
        if not header or not 0 <= now - signed_at < RENEW_AFTER_S:
            claims = {"aud": audience, "exp": now + LIFETIME_S, "sub": self._subject}
            header = self._vapid.sign(claims)["Authorization"]
            self._signed[audience] = now, header
            if len(self._signed) > MAX_KEPT:
                self._signed.popitem(last=False)
        return header
