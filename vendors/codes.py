"""A provider's codes as data: what each means and how to react; and what to do about a code that no table knows.

Each provider keeps one `Codes` beside its sender, with the vendor's document as its source. A code that is in no table is
counted, logged once, and bounded: tried again where the answer says that nothing was sent, in doubt where it does not.
May import runtime's log and metrics. Never: a provider's format, an address, a server's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.logs import get_logger
from runtime.metrics import UNKNOWN_CODES
from vendors.sender import ErrorClass, ProbeRefusal, SendResult, classify

log = get_logger("sender")

_MAX_LOGGED = 1_000
_PLAIN = re.compile(r"[A-Za-z0-9 ._-]{1,64}")
_logged: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class CodeRule:
    """A row of a table."""

    error: ErrorClass
    means: str
    wait_s: float | None = None
    """The least wait before another attempt, if the provider names no time itself."""
    account_wide: bool = True
    """Whether it says something of the account; False where it is about this recipient alone (too often, greylisted)."""
    opted_out: bool = False
    """Whether the code says that the recipient sent STOP: true whatever the account's setup is."""


@dataclass(frozen=True, slots=True)
class Codes:
    """A provider's table; `source` is where the vendor documents it."""

    source: str
    rows: Mapping[str, CodeRule]

    def find(self, *keys: str) -> CodeRule | None:
        """The first row found; pass the most specific key first."""
        return next((self.rows[key] for key in keys if key in self.rows), None)


def same(
    error: ErrorClass, rows: Mapping[str, str], wait_s: float | None = None, *, account_wide: bool = True
) -> dict[str, CodeRule]:
    """Rows of one class, by code and meaning."""
    return {code: CodeRule(error, means, wait_s, account_wide) for code, means in rows.items()}


def unknown_http(status: int) -> CodeRule:
    """A code no table knows in an HTTP answer: only a client error says that nothing was sent."""
    error = ErrorClass.TRANSIENT if 400 <= status < 500 else ErrorClass.IN_DOUBT
    return CodeRule(error, "not in the table")


def classify_code(
    provider: str, found: CodeRule | None, unknown: CodeRule, code: str, asked_s: float | None = None
) -> SendResult:
    """What the row asks for; `asked_s` is what the provider asks for. Without a row, `unknown`, counted and logged."""
    if found is None:
        _note(provider, code)
    rule = found or unknown
    wait_s = asked_s if asked_s is not None else rule.wait_s
    return classify(rule.error, code, wait_s, account_wide=rule.account_wide, opted_out=rule.opted_out)


def refuse_probe(found: CodeRule | None, unknown: CodeRule, code: str) -> ProbeRefusal:
    """What a code says to a probe, in words; nothing is counted, as nothing was to be sent."""
    rule = found or unknown
    return ProbeRefusal(rule.error, f"{code} ({rule.means})")


def _note(provider: str, code: str) -> None:
    UNKNOWN_CODES.labels(provider).inc()
    shown = code if _PLAIN.fullmatch(code) else "unprintable"
    if (provider, shown) not in _logged and len(_logged) < _MAX_LOGGED:
        _logged.add((provider, shown))
        log.warning("a code no table knows; further ones are only counted", provider=provider, code=shown)
