"""Secrets of settings, and findings without them.

May import pydantic's types and findings. Never: a setting by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

from console.commands.findings import Finding

_SECRET_WORDS = ("password", "secret", "token", "key", "pepper")
_NO_SECRETS = frozenset({"simulator"})
"""The simulated accounts' password, and a part of their names."""


def secrets_of(value: Any, name: str = "") -> Iterator[str]:
    """Every secret within settings: what is declared one, what is named like one, and passwords inside URLs."""
    if isinstance(value, SecretStr):
        yield from _with_password(value.get_secret_value())
        yield value.get_secret_value()
    elif isinstance(value, BaseModel):
        for key, inner in value:
            yield from secrets_of(inner, key)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from secrets_of(inner, str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from secrets_of(inner, name)
    elif isinstance(value, str):
        yield from _with_password(value)
        if any(word in name for word in _SECRET_WORDS) and not name.endswith("_file"):
            yield value


def _with_password(text: str) -> Iterator[str]:
    try:
        password = urlsplit(text).password
    except ValueError:
        return
    if password:
        yield from (password, unquote(password))


def redacted(finding: Finding, secrets: Iterable[str]) -> Finding:
    """The finding without any secret, whoever wrote it into an error."""
    what, fix = finding.what, finding.fix
    for secret in sorted({s for s in secrets if len(s) >= 4} - _NO_SECRETS, key=len, reverse=True):
        what = what.replace(secret, "***")
        fix = fix and fix.replace(secret, "***")
    return Finding(finding.level, finding.check, " ".join(what.split()), fix)
