"""The keys of a Twilio account, as its sender and its reports read them.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import SmsKeys, required_secret

VENDOR_URL = "https://api.twilio.com"


class TwilioKeys(SmsKeys):
    """Keys of a [[providers]] entry of kind twilio."""

    account_sid: str = Field(min_length=1)
    auth_token: SecretStr | None = None
    auth_token_file: Path | None = None
    sender: str = Field(alias="from", min_length=1)
    base_url: str = VENDOR_URL
    callback_url: str | None = None
    """Where Twilio reports deliveries; what the message is, is added as query parameters (runtime/callbacks.py)."""

    def token(self, provider: ProviderSettings) -> str:
        """The account's token. Raises SettingsError without one."""
        return required_secret(provider, "auth_token", self.auth_token, self.auth_token_file)
