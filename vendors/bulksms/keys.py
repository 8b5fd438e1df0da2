"""The keys of a BulkSMS account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import CallbackSecretKeys, SmsKeys, required_secret


class BulksmsKeys(SmsKeys, CallbackSecretKeys):
    """Keys of a [[providers]] entry of kind bulksms."""

    key: str = Field(min_length=1)
    """The id of an API token."""
    secret: SecretStr | None = None
    secret_file: Path | None = None
    sender: str | None = Field(None, alias="from", min_length=1)
    base_url: str = "https://api.bulksms.com"

    def password(self, provider: ProviderSettings) -> str:
        """The token's secret. Raises SettingsError without one."""
        return required_secret(provider, "secret", self.secret, self.secret_file)
