"""Every vendor: a folder of this package, and one row here.

    vendors/<kind>/sender.py     create(provider) → ProviderAccount: a Sender that can be probed
    vendors/<kind>/reports.py    create(providers) → ReportReader, where the vendor reports deliveries

Modules are imported only where they are needed: an SDK costs its memory.
May import settings. Never: an SDK.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, get_type_hints

from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from vendors.reports import ReportReader
from vendors.sender import ProbeRefusal, Sender


class Vendor(NamedTuple):
    """One kind of provider account. `package` holds its modules."""

    channel: str
    kind: str
    package: str
    has_reports: bool = False


VENDORS = [
    Vendor("email", "smtp", "vendors.smtp"),
    Vendor("email", "gmail", "vendors.smtp.gmail"),
    Vendor("email", "sendgrid", "vendors.sendgrid", has_reports=True),
    Vendor("email", "mailgun", "vendors.mailgun"),
    Vendor("email", "ses", "vendors.ses"),
    Vendor("sms", "twilio", "vendors.twilio", has_reports=True),
    Vendor("sms", "vonage", "vendors.vonage"),
    Vendor("sms", "bulksms", "vendors.bulksms"),
    Vendor("sms", "sns", "vendors.sns"),
    Vendor("push", "fcm", "vendors.fcm"),
    Vendor("push", "apns", "vendors.apns"),
    Vendor("push", "onesignal", "vendors.onesignal"),
]


def channel_of(kind: str) -> str:
    """The channel of a kind of account. Raises KeyError for an unknown kind."""
    return {vendor.kind: vendor.channel for vendor in VENDORS}[kind]


def create_senders(channel: str, providers: Sequence[ProviderSettings]) -> list[Sender]:
    """The channel's accounts in failover order. Raises SettingsError."""
    senders = [_sender_module(provider).create(provider) for provider in providers if provider.channel == channel]
    if not senders:
        raise SettingsError(
            f'no provider sends {channel}; add [[providers]] with channel = "{channel}" to heliograph.toml'
        )
    return senders


def probe(provider: ProviderSettings) -> ProbeRefusal | None:
    """Ask the account's vendor something that needs its credentials and sends nothing; None when the vendor serves it.

    Blocks for a few times the account's `timeout_s` at most. Raises SettingsError.
    """

    async def ask() -> ProbeRefusal | None:
        account = _sender_module(provider).create(provider)
        await account.start()
        try:
            refusal: ProbeRefusal | None = await account.probe()
            return refusal
        finally:
            await account.close()

    return asyncio.run(ask())


def create_report_readers(providers: Iterable[ProviderSettings]) -> dict[str, ReportReader]:
    """By kind, with its configured accounts; also without any: its callbacks are refused then. Raises SettingsError."""
    configured = list(providers)
    return {
        vendor.kind: import_module(f"{vendor.package}.reports").create(
            [provider for provider in configured if provider.kind == vendor.kind]
        )
        for vendor in VENDORS
        if vendor.has_reports
    }


def platforms_of(provider: ProviderSettings) -> frozenset[str] | None:
    """The platforms that an account of this kind serves, read from its class: no account is made. Raises SettingsError."""
    served: frozenset[str] | None = get_type_hints(_sender_module(provider).create)["return"].platforms
    return served


def _sender_module(provider: ProviderSettings) -> Any:
    for vendor in VENDORS:
        if (vendor.channel, vendor.kind) == (provider.channel, provider.kind):
            return import_module(f"{vendor.package}.sender")
    known = ", ".join(vendor.kind for vendor in VENDORS if vendor.channel == provider.channel)
    raise SettingsError(
        f"provider {provider.name}: there is no {provider.kind} for {provider.channel}; there are: {known}"
    )
