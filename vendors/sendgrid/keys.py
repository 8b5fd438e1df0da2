"""The keys of a SendGrid account.

May import pydantic and cryptography. Never: a request.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pydantic import SecretStr

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from vendors.settings import ProviderKeys, checked_base_url, required_secret

_HOSTS = {"global": "https://api.sendgrid.com", "eu": "https://api.eu.sendgrid.com"}


class SendgridKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind sendgrid."""

    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    from_address: str
    region: Literal["global", "eu"] = "global"
    events_key: str | None = None
    """The public key with which SendGrid signs events (base64), as Settings, Mail Settings, Event Webhook shows it."""
    base_url: str | None = None
    """A test double's; else the region's."""

    def secret(self, provider: ProviderSettings) -> str:
        """The API key. Raises SettingsError without one."""
        return required_secret(provider, "api_key", self.api_key, self.api_key_file)

    def host(self, provider: ProviderSettings) -> str:
        """Raises SettingsError."""
        return checked_base_url(provider, self.base_url or _HOSTS[self.region])

    def verification_key(self, provider: ProviderSettings) -> EllipticCurvePublicKey | None:
        """The key of `events_key`, None without one. Raises SettingsError for what is no key on P-256."""
        if self.events_key is None:
            return None
        try:
            key = load_der_public_key(b64decode(self.events_key, validate=True))
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
            raise SettingsError(
                f"provider {provider.name}: events_key is the verification key that SendGrid shows beside Signed Event"
                " Webhook: base64 of a public key on the curve P-256"
            )
        return key
