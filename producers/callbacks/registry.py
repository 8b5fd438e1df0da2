"""Kinds of providers whose callbacks are understood: each is one file, and one line here.

May import every vendor of this package. Never: HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from producers.callbacks import twilio
from producers.callbacks.vendor import Vendor
from runtime.settings import ProviderSettings

KINDS: Mapping[str, Callable[[Iterable[ProviderSettings]], Vendor]] = MappingProxyType({twilio.KIND: twilio.create})


def create_vendors(providers: Iterable[ProviderSettings]) -> dict[str, Vendor]:
    """Every kind with its configured accounts, also without any: its callbacks are refused then. Raises SettingsError."""
    configured = list(providers)
    return {kind: create(each for each in configured if each.kind == kind) for kind, create in KINDS.items()}
