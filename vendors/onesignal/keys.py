"""The keys of a OneSignal app.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import CallbackSecretKeys, required_secret


class OnesignalKeys(CallbackSecretKeys):
    """Keys of a [[providers]] entry of kind onesignal."""

    app_id: str = Field(min_length=1)
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    base_url: str = "https://api.onesignal.com"

    def secret(self, provider: ProviderSettings) -> str:
        """The app's API key. Raises SettingsError without one."""
        return required_secret(provider, "api_key", self.api_key, self.api_key_file)
