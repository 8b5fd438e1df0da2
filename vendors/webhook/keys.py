"""The keys of a webhook account: what its messages are signed with.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from vendors.settings import ProviderKeys, required_secret
from vendors.webhook.signature import MAX_BYTES, MIN_BYTES, PREFIX, is_secret

MAX_SECRETS = 2


class WebhookKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind webhook."""

    secret: SecretStr | None = None
    secret_file: Path | None = None

    def secrets(self, provider: ProviderSettings) -> list[str]:
        """The secret; two, with white space between them, while one replaces the other. Raises SettingsError."""
        found = required_secret(provider, "secret", self.secret, self.secret_file).split()
        if len(found) > MAX_SECRETS or not all(map(is_secret, found)):
            raise SettingsError(
                f"provider {provider.name}: secret is {PREFIX} and {MIN_BYTES} to {MAX_BYTES} bytes in base64, or two of those"
                f" while they change; make one with: echo {PREFIX}$(openssl rand -base64 32)"
            )
        return found
