"""The keys of a SendGrid account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import ProviderKeys, checked_base_url, required_secret

_HOSTS = {"global": "https://api.sendgrid.com", "eu": "https://api.eu.sendgrid.com"}


class SendgridKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind sendgrid."""

    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    from_address: str
    region: Literal["global", "eu"] = "global"
    base_url: str | None = None
    """A test double's; else the region's."""

    def secret(self, provider: ProviderSettings) -> str:
        """The API key. Raises SettingsError without one."""
        return required_secret(provider, "api_key", self.api_key, self.api_key_file)

    def host(self, provider: ProviderSettings) -> str:
        """Raises SettingsError."""
        return checked_base_url(provider, self.base_url or _HOSTS[self.region])
