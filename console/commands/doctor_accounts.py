"""What the settings of the accounts say about themselves, before anybody is asked.

May import vendors, lazily. Never: a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from console.commands.findings import Finding, Level
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings, Settings


def check_accounts(settings: Settings, built: Mapping[str, str], refused: Mapping[str, str]) -> Iterator[Finding]:
    """Whether each account can be constructed, and what of it can hardly be right; see built_accounts."""
    yield from check_channels(built, refused)
    yield from check_doubts(settings, built)


def check_channels(built: Mapping[str, str], refused: Mapping[str, str]) -> list[Finding]:
    """Accounts (name → channel) that could be constructed, and why the others could not."""
    found = [
        Finding(Level.PROBLEM, "providers", why, f"correct the [[providers]] entry {name}")
        for name, why in sorted(refused.items())
    ]
    if built:
        listed = ", ".join(f"{name} ({channel})" for name, channel in built.items())
        found.append(Finding(Level.OK, "providers", listed))
    elif not refused:
        found.append(
            Finding(
                Level.WARNING,
                "providers",
                "none is configured, so nothing can be sent",
                "add [[providers]] to heliograph.toml",
            )
        )
    return found


def built_accounts(providers: Sequence[ProviderSettings]) -> tuple[dict[str, str], dict[str, str]]:
    """Accounts that can be constructed, with their channel, and why the others cannot; by name."""
    from vendors.registry import create_senders

    built: dict[str, str] = {}
    refused: dict[str, str] = {}
    for provider in providers:
        try:
            create_senders(provider.channel, [provider])
        except SettingsError as exc:
            refused[provider.name] = str(exc)
        else:
            built[provider.name] = provider.channel
    return built, refused


def check_doubts(settings: Settings, built: Mapping[str, str]) -> Iterator[Finding]:
    """What of the settings of accounts that can be constructed can hardly be right."""
    from vendors.registry import doubts

    for provider in settings.providers:
        for doubt in doubts(provider, settings.outbound) if provider.name in built else ():
            cure = f"look at the [[providers]] entry {provider.name}"
            yield Finding(Level.WARNING, "providers", f"{provider.name} ({provider.kind}): {doubt}", cure)
