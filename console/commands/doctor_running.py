"""What the doctor hears from running processes, and from ClickHouse about them.

The checks are pure, as the doctor's others are; what asks is below them. What follows from a finding is no second problem: a role that
is not ready because a store is away, or because it halted.
May import runtime.http.client, lazily. Never: a repair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from console.commands.findings import Finding, Level, some
from runtime.errors import HeliographError, UnavailableError
from runtime.status import rfc3339

if TYPE_CHECKING:
    from runtime.http.client import ApiClient

TIMEOUT_S = 5.0
_ACCOUNT_CURE = (
    "correct the account's settings for its senders and `run callbacks` (docs/operations.md, HeliographBreakerOpen)"
)
HOOK_LAG_WARNING = 10_000
_HOOK_CURES = {
    "failing": "run `heliograph webhooks list`: they are asked again by the schedule (docs/operations.md, HeliographHooksFailing)",
    "disabled": "run `heliograph webhooks list`: they said 410 or were switched off; a change of one enables it",
}
_BRAKE_CURE = "stop who writes such records, then restart the role (docs/operations.md, Dead letters)"


@dataclass(frozen=True, slots=True)
class RoleReport:
    """What one process says: why it is not ready (None: it is), what is degraded, and its metrics by name and labels."""

    name: str
    not_ready: str | None = None
    degraded: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(name, the label that tells accounts or stages apart) → value."""


# -- checks: pure -----------------------------------------------------------------------------------------------------


def check_roles(reports: Sequence[RoleReport], where_to_look: str, stores_down: Sequence[str]) -> list[Finding]:
    """Roles that are not ready, by their own words, and what does not work in those that are."""
    found = []
    for report in reports:
        if _halted(report):
            continue  # told as a brake
        if report.not_ready is not None and stores_down:
            follows = f"{report.name} is not ready, which follows from {' and '.join(stores_down)}: {report.not_ready}"
            found.append(Finding(Level.WARNING, "roles", follows, "nothing: it goes on when that is mended"))
        elif report.not_ready is not None:
            what = f"{report.name} is not ready: {report.not_ready}"
            found.append(Finding(Level.PROBLEM, "roles", what, f"wait a moment, then see {where_to_look}"))
        for name, why in sorted(report.degraded.items()):
            found.append(Finding(Level.WARNING, "roles", f"{report.name}: {name}: {why}", f"see {where_to_look}"))
    if any(report.not_ready is not None for report in reports):
        return found
    return [*found, Finding(Level.OK, "roles", f"{len(reports)} ready")]


def _halted(report: RoleReport) -> bool:
    """Whether too many bad records halted it."""
    return any(metric == "heliograph_dead_letter_brake" and value for (metric, _), value in report.metrics.items())


def check_brakes(reports: Sequence[RoleReport]) -> list[Finding]:
    """Stages that halted, and accounts whose bounces are not believed."""
    found = []
    for report in reports:
        if _halted(report):
            what = f"{report.name} halted: {report.not_ready or 'too many bad records'}"
            found.append(Finding(Level.PROBLEM, "brakes", what, _BRAKE_CURE))
        for (metric, label), value in sorted(report.metrics.items()):
            if metric == "heliograph_dead_devices_brake" and value:
                what = f"{report.name} believes no bounce of {label}: too many at once"
                cure = "correct the account's topic, key or list of recipients; the brake lets go by itself"
                found.append(Finding(Level.WARNING, "brakes", what, cure))
    return found


def check_parked(reports: Sequence[RoleReport]) -> list[Finding]:
    """Messages that wait for an account or a recipient with capacity."""
    waiting = {
        label: sum(r.metrics.get(("heliograph_sender_parked", label), 0.0) for r in reports)
        for label in sorted(
            {name for r in reports for metric, name in r.metrics if metric == "heliograph_sender_parked"}
        )
    }
    return [
        Finding(
            Level.WARNING,
            "parked",
            f"{count:,.0f} messages of {channel} wait for an account with capacity",
            "look at the account first (accounts); else raise its rate_per_second, or add another",
        )
        for channel, count in waiting.items()
        if count
    ]


def check_hooks(reports: Sequence[RoleReport]) -> list[Finding]:
    """Customers' endpoints that fail or are disabled, and those that work and are behind."""
    found = []
    for condition, cure in _HOOK_CURES.items():
        count = max((r.metrics.get(("heliograph_hook_endpoints", condition), 0.0) for r in reports), default=0.0)
        if count:
            what = f"{count:,.0f} endpoints of customers are {condition}"
            found.append(Finding(Level.WARNING, "webhooks", what, cure))
    behind = sum(r.metrics.get(("heliograph_hook_lag_records", "live"), 0.0) for r in reports)
    if behind > HOOK_LAG_WARNING:
        what = f"an endpoint of a customer is {behind:,.0f} records behind"
        cure = "it answers slowly (docs/operations.md, HeliographHooksBehind)"
        found.append(Finding(Level.WARNING, "webhooks", what, cure))
    return found


def check_same_providers(own: Mapping[str, int], reports: Sequence[RoleReport]) -> list[Finding]:
    """Accounts whose settings differ between processes, or from those of this command."""
    by_account: dict[str, dict[str, int]] = {name: {"this command's settings": number} for name, number in own.items()}
    for report in reports:
        for (metric, account), value in report.metrics.items():
            if metric == "heliograph_provider_settings":
                by_account.setdefault(account, {})[report.name] = int(value)
    found = []
    for account, numbers in sorted(by_account.items()):
        if len(set(numbers.values())) > 1:
            groups: dict[int, list[str]] = {}
            for name, number in numbers.items():
                groups.setdefault(number, []).append(name)
            sides = " differ from ".join(some(sorted(names)) for names in groups.values())
            cure = "give all of them the same settings; they read a changed file by themselves"
            found.append(Finding(Level.PROBLEM, "accounts", f"settings of {account}: {sides}", cure))
    return found


def check_conditions(rows: Sequence[Mapping[str, Any]], reports: Sequence[RoleReport] = ()) -> list[Finding]:
    """What processes say is down: accounts with their last code, stages that halted; but none that `reports` show to be halted."""
    halted = [report.not_ready or "" for report in reports if _halted(report)]
    found = []
    for row in rows:
        if row["subject"] != "account" and any(row["detail"] in reason for reason in halted):
            continue
        since = f" since {rfc3339(row['since'])}" if row["since"] else ""
        probe = f", next probe at {rfc3339(row['next_at'])}" if row["next_at"] else ""
        if row["subject"] == "account":
            what = f"{row['name']} ({row['channel']}) does not work{since}: {row['detail']}{probe}"
            found.append(Finding(Level.PROBLEM, "accounts", what, _ACCOUNT_CURE))
        else:
            what = f"the {row['subject']} of {row['name']} halted{since}: {row['detail']}"
            found.append(Finding(Level.PROBLEM, "brakes", what, _BRAKE_CURE))
    return found


def check_new_dead_letters(rows: Sequence[Mapping[str, Any]]) -> Finding:
    """Open dead letters of the last hour, by stage and reason."""
    total = sum(row["letters"] for row in rows)
    if not total:
        return Finding(Level.OK, "dead letters", "no new one in the last hour")
    kinds = some([f"{row['letters']:,} {row['stage']} {row['reason']}" for row in rows])
    return Finding(
        Level.WARNING,
        "dead letters",
        f"{total:,} new and open ones in the last hour: {kinds}",
        "run `heliograph dlq list`",
    )


# -- asking -----------------------------------------------------------------------------------------------------------

_LABELS = {
    "heliograph_dead_letter_brake": "stage",
    "heliograph_dead_devices_brake": "provider",
    "heliograph_sender_parked": "channel",
    "heliograph_provider_settings": "provider",
    "heliograph_hook_endpoints": "condition",
    "heliograph_hook_lag_records": "condition",
}


def ask_roles(roles: Mapping[str, str]) -> list[RoleReport]:
    """What processes say, in their order; `roles` has the URL of each by its name: its /metrics, or the address alone."""

    async def ask() -> list[RoleReport]:
        return await asyncio.gather(*(_ask_role(name, url) for name, url in roles.items()))

    return asyncio.run(ask())


async def _ask_role(name: str, url: str) -> RoleReport:
    from runtime.http.client import ApiClient

    async with ApiClient(url.rstrip("/").removesuffix("/metrics"), timeout_s=TIMEOUT_S) as role:
        try:
            status, said = await role.call("GET", "/readyz", expect=range(600))
        except UnavailableError as exc:
            return RoleReport(name, f"it does not answer ({exc})")
        said = said if isinstance(said, dict) else {}
        not_ready = None if status == 200 else str(said.get("reason") or f"it answers {status}")
        degraded = said.get("degraded")
        return RoleReport(name, not_ready, degraded if isinstance(degraded, dict) else {}, await _metrics(role))


async def _metrics(role: ApiClient) -> dict[tuple[str, str], float]:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return {
            (sample.name, sample.labels.get(_LABELS[sample.name], "")): sample.value
            for family in text_string_to_metric_families(await role.text("/metrics"))
            for sample in family.samples
            if sample.name in _LABELS
        }
    except (HeliographError, ValueError):  # ready or not is known already
        return {}
