"""The keys of a Mailgun account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import ProviderKeys, checked_base_url, read_secret, required_secret

_HOSTS = {"us": "https://api.mailgun.net", "eu": "https://api.eu.mailgun.net"}


class MailgunKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind mailgun."""

    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    domain: str = Field(pattern=r"^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$")
    from_address: str
    region: Literal["us", "eu"] = "us"
    signing_key: SecretStr | None = None
    """With which Mailgun signs webhooks: it is the account's, and not its API key."""
    signing_key_file: Path | None = None
    base_url: str | None = None
    """A test double's; else the region's."""

    def secret(self, provider: ProviderSettings) -> str:
        """The API key. Raises SettingsError without one."""
        return required_secret(provider, "api_key", self.api_key, self.api_key_file)

    def host(self, provider: ProviderSettings) -> str:
        """Raises SettingsError."""
        return checked_base_url(provider, self.base_url or _HOSTS[self.region])

    def webhook_key(self, provider: ProviderSettings) -> str | None:
        """The webhook signing key, None without one. Raises SettingsError when its file cannot be read."""
        return read_secret(provider, "signing_key", self.signing_key, self.signing_key_file)
