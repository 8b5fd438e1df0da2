"""The last look before a send: cancelled, expired, suppressed or opted out since the router decided; pure.

May import runtime values and schemas. Never: a provider, rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from runtime import ids
from runtime.consent import Suppressions, opted_out, suppressed
from schemas.events import Cancellation, ChannelMessage, RecipientProfile


class OptOutView(Protocol):
    def get(self, key: str) -> RecipientProfile | None: ...


class CancellationView(Protocol):
    def get(self, key: str) -> Cancellation | None: ...


@dataclass(slots=True)
class SenderViews:
    """The reference data the last look needs; `opt_outs` holds only profiles that refuse something."""

    suppressions: Suppressions
    opt_outs: OptOutView
    cancellations: CancellationView


def recheck(message: ChannelMessage, views: SenderViews, now: int, *, repeats: bool = False) -> tuple[str, str] | None:
    """(state, reason) that forbids the send, None when nothing does.

    Each of these states says that nothing was sent, so none is used for a message that an earlier attempt may have sent;
    `repeats`: this one repeats such a doubt.
    """
    refusal = _refusal(message, views, now)
    return ("unknown", "in_doubt") if refusal and (repeats or message["possible_duplicate"]) else refusal


def _refusal(message: ChannelMessage, views: SenderViews, now: int) -> tuple[str, str] | None:
    if message["expires_at"] is not None and message["expires_at"] <= now:
        return "expired", "past_expiry"
    cancellation = views.cancellations.get(message["notification_id"])
    if cancellation is not None and cancellation["tenant"] == message["tenant"]:
        return "cancelled", "by_caller"
    address_hash = ids.address_hash(message["channel"], message["address"])
    if suppressed(message["tenant"], message["channel"], address_hash, views.suppressions, now):
        return "suppressed", "suppressed_address"
    if message["user_id"]:
        profile = views.opt_outs.get(f"{message['tenant']}:{message['user_id']}")
        if opted_out(profile, message["channel"], message["category"], message["lane"]):
            return "skipped", "opted_out"
    return None
