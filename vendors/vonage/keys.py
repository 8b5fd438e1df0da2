"""The keys of a Vonage account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import SmsKeys, required_secret


class VonageKeys(SmsKeys):
    """Keys of a [[providers]] entry of kind vonage."""

    key: str = Field(min_length=1)
    secret: SecretStr | None = None
    secret_file: Path | None = None
    sender: str = Field(alias="from", min_length=1)
    base_url: str = "https://rest.nexmo.com"

    def password(self, provider: ProviderSettings) -> str:
        """The API secret. Raises SettingsError without one."""
        return required_secret(provider, "secret", self.secret, self.secret_file)
