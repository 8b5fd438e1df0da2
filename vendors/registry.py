"""Every vendor: a folder of this package, and one row here.

    vendors/<kind>/sender.py     create(provider) → ProviderAccount: a Sender that can be probed
                                 create(provider, rules), where it asks for URLs that users give
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
from runtime.outbound import OutboundRules
from runtime.settings import OutboundSettings, ProviderSettings
from vendors.bounces import BounceAccount
from vendors.reports import ReportReader
from vendors.sender import ProbeRefusal, Sender


class Vendor(NamedTuple):
    """One kind of provider account. `package` holds its modules."""

    channel: str
    kind: str
    package: str
    has_reports: bool = False
    can_look_up: bool = False
    """Whether it can be asked if it has a message (`reconcile`)."""
    has_bounces: bool = False
    """Whether its mails may come back to a mailbox of ours (vendors/bounces.py)."""
    asks_given_urls: bool = False
    """Whether its requests go to URLs that users give: only where runtime/outbound.py lets them."""


VENDORS = [
    Vendor("email", "smtp", "vendors.smtp", has_bounces=True),
    Vendor("email", "gmail", "vendors.smtp.gmail", has_bounces=True),
    Vendor("email", "sendgrid", "vendors.sendgrid", has_reports=True, can_look_up=True),
    Vendor("email", "mailgun", "vendors.mailgun", has_reports=True, can_look_up=True),
    Vendor("email", "ses", "vendors.ses", has_reports=True),
    Vendor("sms", "twilio", "vendors.twilio", has_reports=True, can_look_up=True),
    Vendor("sms", "vonage", "vendors.vonage", has_reports=True),
    Vendor("sms", "bulksms", "vendors.bulksms", has_reports=True, can_look_up=True),
    Vendor("sms", "sns", "vendors.sns"),
    Vendor("push", "fcm", "vendors.fcm"),
    Vendor("push", "apns", "vendors.apns"),
    Vendor("push", "onesignal", "vendors.onesignal", has_reports=True),
    Vendor("push", "webpush", "vendors.webpush", asks_given_urls=True),
    Vendor("webhook", "webhook", "vendors.webhook", asks_given_urls=True),
    Vendor("webhook", "slack", "vendors.slack", asks_given_urls=True),
    Vendor("webhook", "teams", "vendors.teams", asks_given_urls=True),
]


_PUBLIC_ADDRESSES = OutboundSettings()


def channel_of(kind: str) -> str:
    """The channel of a kind of account. Raises KeyError for an unknown kind."""
    return {vendor.kind: vendor.channel for vendor in VENDORS}[kind]


def create_senders(
    channel: str, providers: Sequence[ProviderSettings], outbound: OutboundSettings = _PUBLIC_ADDRESSES
) -> list[Sender]:
    """The channel's accounts in failover order. Raises SettingsError."""
    senders: list[Sender] = [_create(provider, outbound) for provider in providers if provider.channel == channel]
    if not senders:
        raise SettingsError(
            f'no provider sends {channel}; add [[providers]] with channel = "{channel}" to heliograph.toml'
        )
    return senders


def doubts(provider: ProviderSettings, outbound: OutboundSettings = _PUBLIC_ADDRESSES) -> list[str]:
    """What of an account's settings can hardly be right, in words; nobody is asked. Raises SettingsError."""
    found: list[str] = _create(provider, outbound).doubts()
    return found


def can_be_probed(provider: ProviderSettings) -> bool:
    """Whether there is a vendor to ask: not where all requests go to URLs that users give. Raises SettingsError."""
    return not _vendor(provider).asks_given_urls


def probe(provider: ProviderSettings) -> ProbeRefusal | None:
    """Ask the account's vendor something that needs its credentials and sends nothing; None when the vendor serves it.

    Blocks for a few times the account's `timeout_s` at most. Raises SettingsError.
    """

    async def ask() -> ProbeRefusal | None:
        account = _create(provider, _PUBLIC_ADDRESSES)
        await account.start()
        try:
            refusal: ProbeRefusal | None = await account.probe()
            return refusal
        finally:
            await account.close()

    return asyncio.run(ask())


def create_look_ups(providers: Iterable[ProviderSettings]) -> dict[str, Sender]:
    """By name, the accounts of kinds that can be asked after a message, whatever their `reconcile` says. Raises SettingsError."""
    return {p.name: _create(p, _PUBLIC_ADDRESSES) for p in providers if _vendor(p).can_look_up}


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


def create_bounce_accounts(providers: Iterable[ProviderSettings]) -> list[BounceAccount]:
    """Those of the accounts whose mails come back to a mailbox. Raises SettingsError."""
    made = [_create(p, _PUBLIC_ADDRESSES).bounces for p in providers if _vendor(p).has_bounces]
    return [account for account in made if account is not None]


def platforms_of(provider: ProviderSettings) -> frozenset[str] | None:
    """The platforms that an account of this kind serves, read from its class: no account is made. Raises SettingsError."""
    served: frozenset[str] | None = get_type_hints(_sender_module(_vendor(provider)).create)["return"].platforms
    return served


def _create(provider: ProviderSettings, outbound: OutboundSettings) -> Any:
    vendor = _vendor(provider)
    if provider.reconcile and not vendor.can_look_up:
        able = ", ".join(each.kind for each in VENDORS if each.can_look_up)
        raise SettingsError(
            f"provider {provider.name}: reconcile = true is for kinds that can be asked after a message: {able}"
        )
    create = _sender_module(vendor).create
    return create(provider, OutboundRules(outbound)) if vendor.asks_given_urls else create(provider)


def _sender_module(vendor: Vendor) -> Any:
    return import_module(f"{vendor.package}.sender")


def _vendor(provider: ProviderSettings) -> Vendor:
    for vendor in VENDORS:
        if (vendor.channel, vendor.kind) == (provider.channel, provider.kind):
            return vendor
    known = ", ".join(vendor.kind for vendor in VENDORS if vendor.channel == provider.channel)
    raise SettingsError(
        f"provider {provider.name}: there is no {provider.kind} for {provider.channel}; there are: {known}"
    )
