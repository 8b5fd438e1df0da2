"""The keys of an SNS account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runtime.settings import ProviderSettings
from vendors.settings import SmsKeys, checked_base_url
from vendors.sigv4 import AwsKeys


class SnsKeys(AwsKeys, SmsKeys):
    """Keys of a [[providers]] entry of kind sns."""

    sender_id: str | None = Field(None, pattern=r"^[A-Za-z0-9-]{1,11}$")
    sms_type: Literal["Transactional", "Promotional"] = "Transactional"

    def host(self, provider: ProviderSettings) -> str:
        """Raises SettingsError."""
        return checked_base_url(provider, self.base_url or f"https://sns.{self.region}.amazonaws.com")
