"""Who gets what on which channel: the decision ladder, pure.

    | # | when                                        | state / reason                  | about        |
    |---|---------------------------------------------|---------------------------------|--------------|
    | 1 | expires_at has passed                       | expired / past_expiry           | notification |
    | 2 | the caller cancelled it                     | cancelled / by_caller           | notification |
    | 3 | dry run                                     | simulated / dry_run             | notification |
    | 4 | send_at is in the future                    | scheduled                       | notification |
    | 5 | user unknown and no address given           | rejected / unknown_recipient    | notification |
    | 6 | template or version unknown                 | rejected / unknown_template     | notification |
    | 7 | no address for the channel                  | skipped / no_address            | message      |
    | 8 | address malformed, or with an encoded word  | rejected / invalid_address      | message      |
    | 9 | address suppressed                          | suppressed / suppressed_address | message      |
    |10 | opted out of the channel                    | skipped / opted_out             | message      |
    |11 | opted out of the category (critical passes) | skipped / opted_out             | message      |

May import schemas and runtime values. Never: rendering, encoding, Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from runtime import ids
from runtime.addresses import has_encoded_word
from runtime.consent import Suppressions, opted_out, suppressed
from runtime.subscriptions import address_of
from schemas.channels import CHANNELS, ROWS
from schemas.events import NotificationRequest, RecipientProfile


class Verdict(NamedTuple):
    """A state and why."""

    state: str
    reason: str | None = None
    detail: str | None = None


class Target(NamedTuple):
    """One address of a channel."""

    channel: str
    address: str
    platform: str | None
    fingerprint: str
    """The address' hash."""


def target(channel: str, address: str, platform: str | None = None) -> Target:
    """The address with its fingerprint, which a decision asks for three times."""
    return Target(channel, address, platform, ids.address_hash(channel, address))


class ChannelDecision(NamedTuple):
    """A decision about one channel of a notification: send to `target`, or not because of `verdict`."""

    channel: str
    target: Target | None
    verdict: Verdict | None


def before_recipient(request: NotificationRequest, *, cancelled: bool, now: int) -> Verdict | None:
    """Rows 1 to 4 of the ladder."""
    expires_at = request.get("expires_at")
    send_at = request.get("send_at")
    if expires_at is not None and expires_at <= now:
        return Verdict("expired", "past_expiry")
    if cancelled:
        return Verdict("cancelled", "by_caller")
    if request.get("dry_run"):
        return Verdict("simulated", "dry_run")
    if send_at is not None and send_at > now:
        return Verdict("scheduled")
    return None


def targets(request: NotificationRequest, profile: RecipientProfile | None, channel: str) -> list[Target]:
    """Every address for a channel: those given with the request, else the profile's."""
    given = [
        target(channel, a["value"], a["platform"]) for a in request.get("addresses", ()) if a["channel"] == channel
    ]
    if given or profile is None:
        return given
    row = ROWS[channel]
    if not row.one_address:
        own = (device for device in profile["devices"] if device["platform"] in row.platforms)
        found = ((device, address_of(device)) for device in own)
        return [target(channel, address, device["platform"]) for device, address in found if address]
    address: str | None = cast(Mapping[str, Any], profile)[row.stored_as]
    return [target(channel, address)] if address else []


def may_send(
    tenant: str,
    lane: str,
    category: str,
    profile: RecipientProfile | None,
    target: Target,
    suppressions: Suppressions,
    now: int,
) -> Verdict | None:
    """Rows 8 to 11 of the ladder for one address; None when it may be sent to."""
    # The API stores what passed stricter checks; a direct publisher's addresses meet only this one.
    if not ROWS[target.channel].shape.pattern.fullmatch(target.address) or has_encoded_word(target.address):
        return Verdict("rejected", "invalid_address", "the address is malformed")
    if suppressed(tenant, target.channel, target.fingerprint, suppressions, now):
        return Verdict("suppressed", "suppressed_address")
    if refused := opted_out(profile, target.channel, category, lane):
        return Verdict("skipped", "opted_out", refused)
    return None


def _default_channels(request: NotificationRequest, available: Sequence[str]) -> list[str]:
    """Without a wanted channel: all that can be rendered; for a bare address only its own channels."""
    given = {address["channel"] for address in request.get("addresses", ())}
    if given and not request.get("user_id"):
        return [channel for channel in CHANNELS if channel in given]
    return [channel for channel in CHANNELS if channel in available]


def decide_channels(
    request: NotificationRequest,
    lane: str,
    category: str,
    available: Sequence[str],
    profile: RecipientProfile | None,
    suppressions: Suppressions,
    now: int,
) -> list[ChannelDecision]:
    """A choice per address (per channel where there is none), in the order of the wanted channels.

    With the strategy first_available the channels after the first that may be sent to are not looked at.
    """
    wanted = request.get("channels") or _default_channels(request, available)
    choices: list[ChannelDecision] = []
    for channel in dict.fromkeys(wanted):
        found = targets(request, profile, channel)
        if not found:
            choices.append(ChannelDecision(channel, None, Verdict("skipped", "no_address")))
        unique = {each.fingerprint: each for each in found}
        judged = [
            ChannelDecision(channel, t, may_send(request["tenant"], lane, category, profile, t, suppressions, now))
            for t in unique.values()
        ]
        choices += judged
        if request.get("strategy") == "first_available" and any(choice.verdict is None for choice in judged):
            break
    return choices
