"""What a sender promises, held against what the provider took and what was told: one judge for every world; pure.

May import schemas. Never: where the events come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from schemas.events import states


def broken_promises(
    events: Mapping[str, Sequence[Mapping[str, Any]]], accepted: Iterable[str], message_ids: Mapping[str, Iterable[str]]
) -> set[str]:
    """Which promises do not hold, in words.

    `events` are the status events and `message_ids` the messages of each notification; `accepted` has the message id of every
    request that the provider took.
    """
    taken = [*accepted]
    found = set()
    for notification, ids in message_ids.items():
        reported = events.get(notification, ())
        count = sum(taken.count(message_id) for message_id in set(ids))
        ends = {event["state"] for event in reported} & states().settled
        flagged = any(event["possible_duplicate"] for event in reported)
        if not ends:
            found.add("never told" if count else "lost")
        if count > 1 and not flagged:
            found.add("twice without a flag")
        if count > 1 and ends == {"unknown"}:
            found.add("at most once came twice")
    return found
