"""The invariants, held against the vendors' log and the topics, never against our own status alone.

I1  accepted = settled, each message exactly one settled state
I2  the vendors accepted nothing that was not published
I3  every `sent` is in a vendor's log
I4  what was accepted twice is flagged; at most once is never twice; doubts of ended senders ≤ ends × window
I5  ClickHouse's raw, view and state counts are those of the status topic
I6  no lag, no timer, no residual
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from local.verification import CHANNELS, Verification, compare
from schemas.events import states
from tests.faults.world import World

IN_FLIGHT_CAP = 256
_RECEIPTS = frozenset({"delivered", "undelivered"})
"""What a vendor says later of what was sent."""
_LATE_TRUTH = {frozenset({"unknown", "sent"}), frozenset({"failed", "sent"}), frozenset({"bounced", "suppressed"})}
"""A paused sender that finishes after its successor has decided adds a later, truer fact; its rank settles it."""


def violations(
    world: World,
    verification: Verification,
    accounting: Mapping[str, int],
    journal: Mapping[str, Mapping[str, Any]],
    ends: int,
) -> list[str]:
    """What does not hold; [] when everything does. `ends`: processes killed or paused."""
    found = [str(finding) for finding in compare(verification)]
    accepts = Counter((CHANNELS[kind], id_) for kind, id_ in verification.accepts if kind in CHANNELS)
    twice = [m for m in verification.messages if accepts[m.channel, m.id] > 1]
    once = {id_ for id_, wanted in journal.items() if wanted["delivery"] == "at_most_once"}
    found += [f"at most once came {accepts[m.channel, m.id]} times: {m.id}" for m in twice if m.notification_id in once]

    statuses = world.statuses()
    ours = {event_id: status for event_id, status in statuses.items() if status["notification_id"] in journal}
    settled: dict[str, set[str]] = {}
    for status in ours.values():
        if status["state"] in states().settled:
            settled.setdefault(status["message_id"] or status["notification_id"], set()).add(status["state"])
    for id_, reported in settled.items():
        ours_alone = reported - _RECEIPTS
        if len(ours_alone) > 1 and frozenset(ours_alone) not in _LATE_TRUTH:
            found.append(f"several settled states {sorted(reported)}: {id_}")
    reported = {status["notification_id"] for status in ours.values() if status["state"] in states().settled}
    if missing := set(journal) - reported:
        found.append(f"{len(missing)} accepted notifications have no settled state: {sorted(missing)[:5]}")
    doubts = sum("claimed by a sender that ended" in (status["detail"] or "") for status in ours.values())
    if doubts > ends * IN_FLIGHT_CAP:
        found.append(f"{doubts} doubts of ended senders are more than {ends} × {IN_FLIGHT_CAP}")

    found += _counts(world, ours, settled)
    if accounting.get("in_flight") != 0 or accounting.get("residual") != 0:
        found.append(f"accounting: {dict(accounting)}")
    if lag := world.lag():
        found.append(f"lag: {lag}")
    if timers := world.pending_timers():
        found.append(f"{timers} timers pending")
    return found


def _counts(world: World, ours: Mapping[str, Mapping[str, Any]], settled: Mapping[str, set[str]]) -> list[str]:
    ids = sorted({status["notification_id"] for status in ours.values()})
    raw = world.query(
        "SELECT uniqExact(event_id), count() FROM delivery_events WHERE notification_id IN {ids:Array(UUID)}", ids=ids
    )
    found = []
    if raw != [(len(ours), len(ours))]:
        found.append(f"delivery_events has (distinct, rows) {raw}, the topic {len(ours)} events")
    kept = dict(
        world.query(
            "SELECT toString(message_id), state FROM message_state WHERE notification_id IN {ids:Array(UUID)}", ids=ids
        )
    )
    wanted = {status["message_id"] for status in ours.values() if status["message_id"]}
    if set(kept) != wanted:
        found.append(f"message_state has {len(kept)} messages, the topic {len(wanted)}")
    wrong = [id_ for id_, state in kept.items() if state not in settled.get(id_, {state})]
    if wrong:
        found.append(f"message_state says otherwise than the topic: {wrong[:5]}")
    whole = world.query("SELECT count() FROM notification_state WHERE notification_id IN {ids:Array(UUID)}", ids=ids)
    if whole != [(len(ids),)]:
        found.append(f"notification_state has {whole}, the topic {len(ids)} notifications")
    return found
