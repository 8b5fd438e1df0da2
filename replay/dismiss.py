"""Sets dead letters aside: recorded as a replay that publishes nothing, with the letters as its items.

May import replay. Never: deleting anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from replay.plan import Item, RecordPosition
from replay.progress import Replay
from replay.store import ReplayStore, StoredDeadLetter
from replay.times import UsageError
from runtime import ids
from runtime.clock import Clock, system_clock
from schemas.topics import DEAD_LETTERS

MAX_REASON = 500


def dismiss(
    store: ReplayStore,
    dead_letters: Sequence[StoredDeadLetter],
    filter_words: str,
    tenant: str | None,
    by: str,
    reason: str,
    now: int,
    clock: Clock = system_clock,
) -> str:
    """The id of the dismissal of these letters. Raises UsageError for a reason that says nothing or too much.

    A letter that comes back later, by a re-drive of its record, is open again.
    """
    reason = " ".join(reason.split())
    if not 0 < len(reason) <= MAX_REASON:
        raise UsageError(f"--reason is to say why, in 1 to {MAX_REASON} characters")
    dismissal = Replay(
        ids.notification_id(now, "dismiss"),
        "dismiss",
        DEAD_LETTERS,
        filter_words,
        tenant or "",
        by,
        len(dead_letters),
        now,
        published=len(dead_letters),
        state="finished",
        note=reason,
    )
    store.write_items(dismissal.replay_id, [_item(dead_letter) for dead_letter in dead_letters], clock())
    store.write(dismissal.moved(clock(), finished_at=clock()))
    return dismissal.replay_id


def _item(dead_letter: StoredDeadLetter) -> Item:
    return Item(
        RecordPosition(*dead_letter.record[:3]),
        dead_letter.tenant,
        dead_letter.notification_id,
        dead_letter.message_id,
        dead_letter.dead_letter_id,
    )
