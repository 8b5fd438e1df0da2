"""The keys of a Vonage account.

May import pydantic. Never: a request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import CallbackSecretKeys, SmsKeys, required_secret


class SignatureKeys(BaseModel):
    """How Vonage signs what it reports, as the account's settings there say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["sha512", "sha256", "sha1", "md5", "md5hash"]
    """`md5hash` is a hash with the secret behind it; the others are HMACs."""
    secret: SecretStr | None = None
    secret_file: Path | None = None


class VonageKeys(SmsKeys, CallbackSecretKeys):
    """Keys of a [[providers]] entry of kind vonage."""

    key: str = Field(min_length=1)
    secret: SecretStr | None = None
    secret_file: Path | None = None
    sender: str = Field(alias="from", min_length=1)
    signature: SignatureKeys | None = None
    base_url: str = "https://rest.nexmo.com"

    def password(self, provider: ProviderSettings) -> str:
        """The API secret. Raises SettingsError without one."""
        return required_secret(provider, "secret", self.secret, self.secret_file)

    def signing(self, provider: ProviderSettings) -> tuple[str | None, str]:
        """Method and secret of a signature; (None, "") where reports are not signed. Raises SettingsError without a secret."""
        if (signed := self.signature) is None:
            return None, ""
        return signed.method, required_secret(provider, "signature.secret", signed.secret, signed.secret_file)
