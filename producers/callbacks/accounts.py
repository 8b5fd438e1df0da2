"""The accounts whose callbacks are taken: those of the settings now, and for a day those that the settings had.

A message that was sent with one token may be reported under another: when the vendor signs with the new one is the vendor's affair.
So a report is refused as forged only if no account of the last day signed it, nor one of a file that changed a moment ago: a sender
may have read it already. What a process forgets is what it had before it started.
May import vendors. Never: HTTP, Kafka.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from runtime.clock import Monotonic, system_monotonic
from runtime.errors import SettingsError
from runtime.provider_files import ProviderFiles
from runtime.settings import ProviderSettings
from vendors.registry import create_report_readers
from vendors.reports import ForgedError, Intake, ReportReader, Reports, Request, UnknownAccountError

KEPT_S = 86_400.0
MAX_KEPT = 32
"""Former sets of accounts: each costs a signature to check, for requests that nobody signed too."""


class _Former(NamedTuple):
    until: float
    readers: Mapping[str, ReportReader]


class ReportAccounts:
    """Readers by kind of vendor, which know former accounts as well."""

    def __init__(self, providers: Sequence[ProviderSettings], monotonic: Monotonic = system_monotonic) -> None:
        """Raises SettingsError."""
        self._monotonic, self._files = monotonic, ProviderFiles(providers)
        self._readers: Mapping[str, ReportReader] = create_report_readers(providers)
        self._former: deque[_Former] = deque(maxlen=MAX_KEPT)
        self._tenants = {provider.name: provider.tenants for provider in providers}

    def replace(self, providers: Sequence[ProviderSettings]) -> None:
        """These are the accounts now. Raises SettingsError, with nothing changed."""
        readers = create_report_readers(providers)
        self._former.appendleft(_Former(self._monotonic() + KEPT_S, self._readers))
        self._readers = readers
        self._tenants |= {provider.name: provider.tenants for provider in providers}

    def tenants(self, provider: str) -> Sequence[str]:
        """For whom an account sends."""
        return self._tenants.get(provider, ())

    def readers(self) -> dict[str, ReportReader]:
        """A reader per kind that stays good when the accounts are replaced."""
        return {kind: _Reader(self, kind, reader.intake) for kind, reader in self._readers.items()}

    async def read(self, kind: str, request: Request) -> Reports:
        """The reports, by the first set of accounts that signed it. Raises what ReportReader.read raises."""
        try:
            return await self._read(kind, request)
        except (ForgedError, UnknownAccountError):
            try:
                changed = self._files.changed()
                if changed is None:
                    raise
                self.replace(changed)
            except SettingsError:
                raise ForgedError from None  # whoever follows the file says why it is not used
            return await self._read(kind, request)

    async def _read(self, kind: str, request: Request) -> Reports:
        now = self._monotonic()
        while self._former and self._former[-1].until <= now:
            self._former.pop()
        try:
            return await self._readers[kind].read(request)
        except (ForgedError, UnknownAccountError):
            for former in tuple(self._former):
                try:
                    return await former.readers[kind].read(request)
                except (ForgedError, UnknownAccountError):
                    continue
            raise


class _Reader:
    def __init__(self, accounts: ReportAccounts, kind: str, intake: Intake) -> None:
        self._accounts, self._kind, self.intake = accounts, kind, intake

    async def read(self, request: Request) -> Reports:
        """As ReportReader.read."""
        return await self._accounts.read(self._kind, request)
