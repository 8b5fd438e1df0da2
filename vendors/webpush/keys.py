"""The keys of a Web Push account: an application server's key, whom to write to about it, and the push services it may ask.

May import pydantic. Never: a request.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from runtime.settings import ProviderSettings
from vendors.settings import ProviderKeys, required_secret

_LABELS = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]*"
_SUBJECT = re.compile(rf"mailto:[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]+@{_LABELS}|https://{_LABELS}(?::\d+)?(?:/[!-~]*)?")
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def _real(subject: str) -> str:
    if not _SUBJECT.fullmatch(subject):
        raise ValueError("a subject is mailto:you@your.domain or https://your.domain: push services refuse any other")
    return subject


def _host(pattern: str) -> str:
    if not _HOST.fullmatch(pattern):
        raise ValueError("a host is a name, or *. and a name for all that are below it")
    return pattern.lower()


class WebpushKeys(ProviderKeys):
    """Keys of a [[providers]] entry of kind webpush."""

    private_key: SecretStr | None = None
    """Of the key pair whose public key the pages subscribe with (applicationServerKey)."""
    private_key_file: Path | None = None
    subject: Annotated[str, AfterValidator(_real)]
    hosts: Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], Field(min_length=1)] = (
        "fcm.googleapis.com",  # Chrome, Edge on Android, Opera, Samsung Internet
        "updates.push.services.mozilla.com",  # Firefox
        "*.push.apple.com",  # Safari
        "*.notify.windows.com",  # Edge
    )
    """Push services that endpoints may be at: an endpoint is a URL that a stranger gives."""

    def key(self, provider: ProviderSettings) -> str:
        """The private key as it is written. Raises SettingsError without one."""
        return required_secret(provider, "private_key", self.private_key, self.private_key_file)

    def serves(self, host: str) -> bool:
        """Whether the host (in lower case) is one of `hosts`."""
        return host in self.hosts or any(
            pattern.startswith("*.") and host.endswith(pattern[1:]) for pattern in self.hosts
        )
