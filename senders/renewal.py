"""Gives a running sender the changed settings of its accounts: an account by account exchange, in place.

    | what changed                                     | what happens                                              |
    |--------------------------------------------------|-----------------------------------------------------------|
    | credentials, addresses, timeouts of an account   | a new client takes its place; what is under way ends      |
    | its limits or breaker                            | the same, but those count from the next start             |
    | accounts came, went, or stand in another order   | nothing, until the next start                             |

The breaker is kept: an account that was given up is back with its first successful probe.
May import vendors and accounts. Never: Kafka, a file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from runtime.provider_files import fingerprint
from runtime.settings import OutboundSettings, ProviderSettings
from senders.accounts import Accounts
from vendors.registry import create_senders
from vendors.sender import Sender

_LIMITS = ("rate_per_second", "max_in_flight", "breaker")
_GRACE_S = 5.0


class AccountRenewal:
    """The accounts of one channel; on the event loop."""

    def __init__(
        self,
        channel: str,
        accounts: Accounts,
        providers: Sequence[ProviderSettings],
        outbound: OutboundSettings,
    ) -> None:
        self._channel, self._accounts, self._outbound = channel, accounts, outbound
        self._providers = self._mine(providers)
        self._fingerprints = [fingerprint(provider) for provider in self._providers]
        self._started = list(self._providers)
        self._leaving: dict[asyncio.Task[None], Sender] = {}

    def _mine(self, providers: Sequence[ProviderSettings]) -> list[ProviderSettings]:
        return [provider for provider in providers if provider.channel == self._channel]

    async def apply(self, providers: Sequence[ProviderSettings]) -> str | None:
        """Exchange what changed; what takes a restart, in words. Raises SettingsError, with nothing exchanged."""
        wanted = self._mine(providers)
        if [(p.name, p.kind) for p in wanted] != [(p.name, p.kind) for p in self._providers]:
            return f"accounts of {self._channel} came, went or changed places: restart this sender"
        fingerprints = [fingerprint(provider) for provider in wanted]
        changed = [i for i, number in enumerate(fingerprints) if number != self._fingerprints[i]]
        fresh = create_senders(self._channel, [wanted[i] for i in changed], self._outbound) if changed else []
        started: list[Sender] = []
        try:
            for sender in fresh:
                await sender.start()
                started.append(sender)
        except BaseException:
            for sender in started:
                await sender.close()
            raise
        for i, sender in zip(changed, fresh, strict=True):
            old, self._accounts[i].sender = self._accounts[i].sender, sender
            self._leave(old, self._providers[i].timeout_s + _GRACE_S)
        self._providers, self._fingerprints = wanted, fingerprints
        limits = [p.name for p, q in zip(wanted, self._started, strict=True) if _limits(p) != _limits(q)]
        return f"limits and breakers of {', '.join(limits)} count from the next start" if limits else None

    def _leave(self, sender: Sender, after_s: float) -> None:
        """Close a client once its last request has ended."""

        async def close() -> None:
            await asyncio.sleep(after_s)
            await sender.close()

        task = asyncio.create_task(close())
        self._leaving[task] = sender
        task.add_done_callback(lambda done: self._leaving.pop(done, None))

    async def close(self) -> None:
        """Close all clients, those that are leaving too."""
        leaving = dict(self._leaving)
        for task in leaving:
            task.cancel()
        for sender in (*leaving.values(), *(self._accounts[i].sender for i in range(len(self._accounts)))):
            await sender.close()


def _limits(provider: ProviderSettings) -> tuple[object, ...]:
    return tuple(getattr(provider, name) for name in _LIMITS)
