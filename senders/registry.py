"""Which module speaks to which kind of provider; imported only where it is configured.

May import settings. Never: an SDK.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, get_type_hints

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from senders.sender import Sender

MODULES = {
    ("email", "smtp"): "senders.email.smtp",
    ("sms", "twilio"): "senders.sms.twilio",
    ("push", "fcm"): "senders.push.fcm",
    ("push", "apns"): "senders.push.apns",
}


def create_senders(channel: str, providers: Sequence[ProviderSettings]) -> list[Sender]:
    """The channel's accounts in failover order. Raises SettingsError."""
    senders: list[Sender] = []
    for provider in providers:
        if provider.channel != channel:
            continue
        senders.append(_module_of(provider).create(provider))
    if not senders:
        raise SettingsError(
            f'no provider sends {channel}; add [[providers]] with channel = "{channel}" to heliograph.toml'
        )
    return senders


def platforms_of(provider: ProviderSettings) -> frozenset[str] | None:
    """The platforms that an account of this kind serves, read from its class: no account is made. Raises SettingsError."""
    served: frozenset[str] | None = get_type_hints(_module_of(provider).create)["return"].platforms
    return served


def _module_of(provider: ProviderSettings) -> Any:
    module = MODULES.get((provider.channel, provider.kind))
    if module is None:
        known = ", ".join(kind for channel, kind in MODULES if channel == provider.channel)
        raise SettingsError(
            f"provider {provider.name}: there is no {provider.kind} for {provider.channel}; there are: {known}"
        )
    return import_module(module)
