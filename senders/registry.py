"""Which module speaks to which kind of provider; imported only where it is configured.

May import settings. What never enters here: an SDK.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from senders.sender import Sender

_MODULES = {
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
        module = _MODULES.get((channel, provider.kind))
        if module is None:
            known = ", ".join(kind for kind_channel, kind in _MODULES if kind_channel == channel)
            raise SettingsError(
                f"provider {provider.name}: there is no {provider.kind} for {channel}; there are: {known}"
            )
        senders.append(import_module(module).create(provider))
    if not senders:
        raise SettingsError(
            f'no provider sends {channel}; add [[providers]] with channel = "{channel}" to heliograph.toml'
        )
    return senders
