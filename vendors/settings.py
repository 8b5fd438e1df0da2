"""A provider's own keys of its [[providers]] entry, checked by its own model.

May import pydantic and the form of a mail. Never: a provider.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from vendors.mime import FromAddress, MailError, parse_from


class ProviderKeys(BaseModel):
    """Base of every provider's keys: a key it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SmsKeys(ProviderKeys):
    """What every account that sends SMS has."""

    max_parts: Annotated[int, Field(ge=1, le=255)] = 24
    """Most parts of a text, each of which is paid for; 24 hold 1,600 characters of any alphabet."""


class CallbackSecretKeys(ProviderKeys):
    """What accounts of a vendor have whose reports are not signed, or need not be."""

    callback_secret: SecretStr | None = None
    """The end of the path to which it reports: /callbacks/<kind>/<callback_secret>."""
    callback_secret_file: Path | None = None

    def path_secret(self, provider: ProviderSettings) -> str | None:
        """The secret, None without one. Raises SettingsError for one that is easy to guess or no part of a path."""
        secret = read_secret(provider, "callback_secret", self.callback_secret, self.callback_secret_file)
        if secret is not None and not _PATH_SECRET.fullmatch(secret):
            raise SettingsError(
                f"provider {provider.name}: callback_secret has 20 to 128 letters, digits, - and _: openssl rand -hex 20"
            )
        return secret


_PATH_SECRET = re.compile(r"[A-Za-z0-9_-]{20,128}", re.ASCII)
K = TypeVar("K", bound=ProviderKeys)


def parse_keys(keys: type[K], provider: ProviderSettings) -> K:
    """The provider's keys. Raises SettingsError, one line that names what is wrong."""
    try:
        return keys(**(provider.model_extra or {}))
    except ValidationError as exc:
        errors = exc.errors(include_input=False, include_url=False)
        problems = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors)
        raise SettingsError(f"provider {provider.name}: {problems}") from exc


def path_secrets(keys: type[CallbackSecretKeys], providers: Iterable[ProviderSettings]) -> list[tuple[str, str]]:
    """(name, secret in the path) of the accounts that have one. Raises SettingsError when one cannot be read or used."""
    own = [(provider, parse_keys(keys, provider)) for provider in providers]
    return [(provider.name, secret) for provider, its in own if (secret := its.path_secret(provider))]


def read_secret(provider: ProviderSettings, key: str, value: SecretStr | None, file: Path | None) -> str | None:
    """The secret itself, or what its `*_file` holds. Raises SettingsError when the file cannot be read."""
    if file is None:
        return value.get_secret_value() if value else None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"provider {provider.name}: cannot read {key}_file {file}: {exc}") from exc


def required_secret(provider: ProviderSettings, key: str, value: SecretStr | None, file: Path | None) -> str:
    """As read_secret. Raises SettingsError also where there is none."""
    secret = read_secret(provider, key, value, file)
    if not secret:
        raise SettingsError(f"provider {provider.name}: give {key} or {key}_file")
    return secret


def checked_from(provider: ProviderSettings, from_address: str) -> FromAddress:
    """The sending mailbox. Raises SettingsError."""
    try:
        return parse_from(from_address)
    except MailError as exc:
        raise SettingsError(f"provider {provider.name}: {exc}") from exc


def checked_base_url(provider: ProviderSettings, url: str) -> str:
    """The URL without a slash at its end. Raises SettingsError for plain http to anything but this machine."""
    scheme, separator, rest = url.partition("://")
    host = rest.split("/")[0].rsplit("@", 1)[-1]
    local = host.rsplit(":", 1)[0] in ("127.0.0.1", "localhost", "[::1]")
    if not separator or not host or not (scheme == "https" or (scheme == "http" and local)):
        raise SettingsError(f"provider {provider.name}: base_url must be https://... (plain http only to this machine)")
    return url.rstrip("/")
