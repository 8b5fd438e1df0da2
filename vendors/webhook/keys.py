"""The keys of a webhook account: what its messages are signed with.

May import pydantic. Never: a request.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from pydantic import SecretStr

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from vendors.settings import ProviderKeys, required_secret

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64
"""Of a key, by the specification."""
MAX_SECRETS = 2


class WebhookKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind webhook."""

    secret: SecretStr | None = None
    secret_file: Path | None = None

    def secrets(self, provider: ProviderSettings) -> list[str]:
        """The secret; two, with white space between them, while one replaces the other. Raises SettingsError."""
        found = required_secret(provider, "secret", self.secret, self.secret_file).split()
        if len(found) > MAX_SECRETS or not all(map(_is_secret, found)):
            raise SettingsError(
                f"provider {provider.name}: secret is {PREFIX} and {MIN_BYTES} to {MAX_BYTES} bytes in base64, or two of those"
                f" while they change; make one with: echo {PREFIX}$(openssl rand -base64 32)"
            )
        return found


def _is_secret(text: str) -> bool:
    if not text.startswith(PREFIX):
        return False
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return False
    return MIN_BYTES <= len(key) <= MAX_BYTES
