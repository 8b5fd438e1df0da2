"""The keys of an SES account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from runtime.settings import ProviderSettings
from vendors.settings import checked_base_url
from vendors.sigv4 import AwsKeys

TopicArn = Annotated[
    str,
    StringConstraints(pattern=r"^arn:aws(-cn|-us-gov)?:sns:[a-z]{2}(-[a-z]+)+-[0-9]:[0-9]{12}:[A-Za-z0-9_-]{1,256}$"),
]


class SesKeys(AwsKeys):
    """Keys of a [[providers]] entry of kind ses."""

    from_address: str
    configuration_set: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    topic_arns: tuple[TopicArn, ...] = ()
    """SNS topics to which SES publishes this account's events."""

    @property
    def vendor_url(self) -> str:
        """The region's own."""
        return f"https://email.{self.region}.amazonaws.com"

    def host(self, provider: ProviderSettings) -> str:
        """Raises SettingsError."""
        return checked_base_url(provider, self.base_url or self.vendor_url)
