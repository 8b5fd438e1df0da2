"""What a replay writes down about itself, as records: notify.replays.v1 and notify.replayitems.v1, so that a rebuilt store has it; pure.

May import schemas. Never: Kafka, a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from replay.plan import Item
from replay.progress import Replay
from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.events import ReplayItem, ReplayState
from schemas.topics import REPLAY_ITEMS, REPLAYS


def state_record(replay: Replay) -> ProducerRecord:
    """A replay as it stands."""
    state: ReplayState = {
        "replay_id": replay.replay_id,
        "command": replay.command,
        "topic": replay.topic,
        "filter": replay.filter,
        "template": replay.template,
        "tenant": replay.tenant,
        "requested_by": replay.requested_by,
        "note": replay.note,
        "planned": replay.planned,
        "published": replay.published,
        "gone": replay.gone,
        "counts": replay.counts,
        "state": replay.state,
        "error": replay.error,
        "from_at": replay.from_at or None,
        "to_at": replay.to_at or None,
        "started_at": replay.started_at,
        "updated_at": replay.updated_at,
        "finished_at": replay.finished_at or None,
    }
    return ProducerRecord(REPLAYS, replay.replay_id.encode(), codec("ReplayState").encode(state))


def item_records(replay_id: str, items: Sequence[Item], first: int, now: int) -> Iterator[ProducerRecord]:
    """Items of a plan from place `first` on."""
    for seq, item in enumerate(items, first):
        record: ReplayItem = {
            "replay_id": replay_id,
            "seq": seq,
            "topic": item.position.topic,
            "partition": item.position.partition,
            "offset": item.position.offset,
            "tenant": item.tenant,
            "notification_id": item.notification_id,
            "message_id": item.message_id,
            "dead_letter_id": item.dead_letter_id,
            "channels": list(item.channels),
            "generation": item.generation,
            "attempt": item.attempt,
            "possible_duplicate": item.possible_duplicate,
            "planned_at": now,
        }
        yield ProducerRecord(REPLAY_ITEMS, f"{replay_id}:{seq}".encode(), codec("ReplayItem").encode(record))
