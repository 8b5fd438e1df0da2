"""Settings of provider accounts that change under a running process: noticed, read again, and told.

A role that uses accounts reads its file again when it, or a file that it names (tokens, keys), changes: what one change is to reach,
senders and callbacks, need no restart, and no two of them work with different credentials for long.
May import runtime.settings. Never: an account, a vendor.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from runtime.errors import HeliographError
from runtime.health import Health
from runtime.logs import get_logger
from runtime.metrics import PROVIDER_SETTINGS
from runtime.settings import DEFAULT_FILE, PREFIX, ProviderSettings, load_settings

log = get_logger("settings")
LOOK_S = 2.0
"""Between two looks at the files."""
_FINGERPRINT_BYTES = 2
"""Enough to see a difference. More would let who reads /metrics try a weak password in peace."""

Apply = Callable[[Sequence[ProviderSettings]], Awaitable[str | None]]
"""Take the accounts over; what of them takes a restart, in words, None for nothing. May raise HeliographError: then nothing changed."""


def fingerprint(provider: ProviderSettings) -> int:
    """A number made of an account's settings and of the files they name."""
    digest = hashlib.sha256(json.dumps(provider.model_dump(mode="json"), sort_keys=True).encode())
    for path in _files([provider]):
        try:
            digest.update(b"\0" + path.read_bytes())
        except OSError:
            digest.update(b"\1")
    return int.from_bytes(digest.digest()[:_FINGERPRINT_BYTES], "big")


def tell(providers: Iterable[ProviderSettings]) -> None:
    """Say in /metrics which settings this process works with."""
    for provider in providers:
        PROVIDER_SETTINGS.labels(provider.name).set(fingerprint(provider))


class ProviderFiles:
    """The settings file and the files that it names, as they were when they were read last."""

    def __init__(self, providers: Sequence[ProviderSettings]) -> None:
        self._providers, self._seen = providers, _stamp(providers)

    def changed(self) -> Sequence[ProviderSettings] | None:
        """The accounts of files that changed since, None where none did. Raises SettingsError, once, for files that are wrong."""
        stamp = _stamp(self._providers)
        if stamp == self._seen:
            return None
        self._seen = stamp
        self._providers = load_settings().providers
        self._seen = _stamp(self._providers)
        return self._providers


async def follow(providers: Sequence[ProviderSettings], apply: Apply, health: Health, look_s: float = LOOK_S) -> None:
    """Look at the files until cancelled, and apply what they say when they change. `/readyz` notes what could not be applied."""
    trouble: str | None = None
    health.note("providers", lambda: trouble)
    tell(providers)
    files = ProviderFiles(providers)
    while True:
        await asyncio.sleep(look_s)
        try:
            if (changed := files.changed()) is None:
                continue
            trouble = await apply(changed)
        except HeliographError as exc:
            trouble = f"the changed settings are not used: {exc}"
            log.error("settings of accounts not taken over", error=str(exc))
            continue
        tell(changed)
        log.info("settings of accounts read again", providers=[provider.name for provider in changed], note=trouble)


def _files(providers: Iterable[ProviderSettings]) -> list[Path]:
    return [
        Path(value)
        for provider in providers
        for extra in (provider.model_extra or {},)
        for table in (extra, *extra.values())
        for name, value in sorted(table.items() if isinstance(table, dict) else ())
        if name.endswith("_file") and isinstance(value, str)
    ]


def _stamp(providers: Iterable[ProviderSettings]) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes when a file does; links are followed, as Kubernetes swaps them."""
    found: list[tuple[int, int, int] | None] = []
    for path in (Path(os.environ.get(f"{PREFIX}CONFIG") or DEFAULT_FILE), *_files(providers)):
        try:
            stat = path.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.append(None)
    return tuple(found)
