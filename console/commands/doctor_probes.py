"""What vendors say to the doctor: one cheap call per account that needs its credentials and sends nothing.

May import vendors, lazily. Never: a message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from console.commands.findings import Finding, Level
from runtime.errors import SettingsError
from runtime.settings import ProviderSettings
from vendors.sender import ErrorClass, ProbeRefusal


def check_probe(provider: ProviderSettings, refusal: ProbeRefusal | None, latency_ms: float) -> Finding:
    """What an account's vendor answered; None is that it serves the account."""
    account = f"{provider.name} ({provider.kind})"
    if refusal is None:
        return Finding(Level.OK, "probes", f"the vendor of {account} takes its credentials, {latency_ms:.0f} ms")
    if refusal.error is ErrorClass.THROTTLED:
        return Finding(
            Level.WARNING, "probes", f"the vendor of {account} is asked too often: {refusal.code}", "ask again later"
        )
    if refusal.error in (ErrorClass.TRANSIENT, ErrorClass.IN_DOUBT):
        what = f"the vendor of {account} does not answer as it should: {refusal.code}"
        cure = f"correct the address in the [[providers]] entry {provider.name}, or the way there; else wait for the vendor"
        return Finding(Level.PROBLEM, "probes", what, cure)
    cure = f"correct the credentials in the [[providers]] entry {provider.name}, or settle it with the vendor"
    return Finding(Level.PROBLEM, "probes", f"the vendor of {account} refuses it: {refusal.code}", cure)


def probe_all(providers: Sequence[ProviderSettings]) -> Iterator[Finding]:
    """One finding per account; what cannot be made of its settings is left out, which is a finding already."""
    from vendors.registry import can_be_probed, probe

    for provider in providers:
        started = time.perf_counter()
        try:
            if not can_be_probed(provider):
                what = f"{provider.name} ({provider.kind}) asks nobody but its receivers: it cannot be probed without sending"
                yield Finding(Level.OK, "probes", what)
                continue
            refusal = probe(provider)
        except SettingsError:
            continue
        yield check_probe(provider, refusal, (time.perf_counter() - started) * 1_000)
        yield from _probe_bounces(provider)


def _probe_bounces(provider: ProviderSettings) -> Iterator[Finding]:
    """Whether the mailbox of an account's bounces opens, where it has one."""
    from vendors.registry import create_bounce_accounts
    from vendors.smtp import mailbox

    for account in create_bounce_accounts([provider]):
        started = time.perf_counter()
        refused = mailbox.probe(account)
        if refused is None:
            took_ms = (time.perf_counter() - started) * 1_000
            yield Finding(Level.OK, "probes", f"the mailbox of {provider.name}'s bounces opens, {took_ms:.0f} ms")
        else:
            cure = f"correct bounces in the [[providers]] entry {provider.name}, or the mailbox"
            yield Finding(Level.PROBLEM, "probes", f"the mailbox of {provider.name}'s bounces: {refused}", cure)
