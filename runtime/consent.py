"""What a recipient allows: suppressions and opt-outs; asked by the router and once more before each send; pure.

May import schemas. Never: an address' shape, a template, a provider.
"""

from __future__ import annotations

from typing import Literal, Protocol

from schemas.events import RecipientProfile, Suppression


class Suppressions(Protocol):
    """The part of a view that is read."""

    def get(self, key: str) -> Suppression | None: ...


def suppressed(tenant: str, channel: str, address_hash: str, suppressions: Suppressions, now: int) -> bool:
    """Whether the address of this hash is on the suppression list at `now`."""
    suppression = suppressions.get(f"{tenant}:{channel}:{address_hash}")
    return suppression is not None and (suppression["expires_at"] is None or suppression["expires_at"] > now)


def opted_out(
    profile: RecipientProfile | None, channel: str, category: str, lane: str
) -> Literal["channel", "category"] | None:
    """Which opt-out forbids the channel. Critical messages pass category opt-outs, never channel opt-outs."""
    if profile is None:
        return None
    if profile["channels"].get(channel) is False:
        return "channel"
    if lane != "critical" and profile["categories"].get(category, {}).get(channel) is False:
        return "category"
    return None


def has_opt_outs(profile: RecipientProfile) -> bool:
    """Whether any channel or category is refused: the only profiles a sender has to hold."""
    return False in profile["channels"].values() or any(
        False in channels.values() for channels in profile["categories"].values()
    )
