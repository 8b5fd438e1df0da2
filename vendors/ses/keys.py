"""The keys of an SES account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pydantic import Field

from runtime.settings import ProviderSettings
from vendors.settings import checked_base_url
from vendors.sigv4 import AwsKeys


class SesKeys(AwsKeys):
    """Keys of a [[providers]] entry of kind ses."""

    from_address: str
    configuration_set: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")

    def host(self, provider: ProviderSettings) -> str:
        """Raises SettingsError."""
        return checked_base_url(provider, self.base_url or f"https://email.{self.region}.amazonaws.com")
