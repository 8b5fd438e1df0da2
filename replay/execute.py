"""Publishes a plan in batches, writes down how far it is, and stops at the first error.

    batch read ──► published, every acknowledgement ──► its end written down ──► the next, when the rate allows

A process that dies in between publishes at most one batch again when it is resumed; the senders' ledger drops the copies.
May import runtime and replay. Never: what is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from replay.plan import Item
from replay.progress import Replay
from replay.records import Stamp, copies
from replay.redrive import refusal
from replay.running import Stop, Stopped
from replay.source import Reader
from replay.store import ReplayStore
from replay.template import TemplateVersion
from runtime.clock import Clock, Monotonic, system_clock, system_monotonic
from runtime.errors import HeliographError
from runtime.kafka.producer import Producer
from runtime.process import crash_point
from runtime.records import ConsumerRecord, ProducerRecord
from runtime.settings import KafkaSettings

MAX_BATCH = 200


class Confirm(Protocol):
    """Told of every batch that is in Kafka."""

    def __call__(self, items: Sequence[Item]) -> None: ...


def execute(
    kafka: KafkaSettings,
    store: ReplayStore,
    replay: Replay,
    rate: float,
    on_progress: Callable[[int], None],
    stop: Stop,
    *,
    confirm: Confirm | None = None,
    crash_at: str | None = None,
    clock: Clock = system_clock,
    monotonic: Monotonic = system_monotonic,
) -> Replay:
    """Publish what is left of a replay; the replay as it ended: finished, or stopped by whoever asked `stop`.

    Raises the error that stopped it, after writing it down. The caller has the replay's lease.
    """
    reader, producer = Reader(kafka), Producer(kafka, client_id="replay")
    size = max(1, min(MAX_BATCH, int(rate / 4)))
    template = TemplateVersion.parse(replay.template) if replay.template else None
    due = monotonic()
    try:
        while replay.published < replay.planned:
            items = store.items(replay.replay_id, replay.published, size)
            if not items:
                raise HeliographError(f"the plan of replay {replay.replay_id} is not kept any more: start a new one")
            stop.wait(due - monotonic())
            due = max(due, monotonic()) + len(items) / rate
            records = _records(store, reader, items)
            stamp = Stamp(replay.replay_id, replay.requested_by, replay.command == "resend", clock(), template)
            out: list[ProducerRecord] = []
            for item, record in records:
                out += copies(record, item, stamp)
            producer.publish(out)
            crash_point("after_replay_publish", crash_at)
            if confirm is not None:
                confirm([item for item, _ in records])
            replay = replay.moved(
                clock(),
                published=replay.published + len(items),
                gone=replay.gone + len(items) - len(records),
                state="running",
                error="",
            )
            store.write(replay)
            on_progress(replay.published)
            crash_point("after_replay_batch", crash_at)
        replay = replay.moved(clock(), state="finished", finished_at=clock())
        store.write(replay)
        return replay
    except Stopped as exc:
        replay = replay.moved(clock(), state="stopped", error=str(exc)[:500])
        store.write(replay)
        return replay
    except HeliographError as exc:
        store.write(replay.moved(clock(), state="stopped", error=str(exc)[:500] or type(exc).__name__))
        raise
    finally:
        reader.close()
        producer.close()


def _records(store: ReplayStore, reader: Reader, items: Sequence[Item]) -> list[tuple[Item, ConsumerRecord]]:
    """The records of a batch that are still kept, and can still be published."""
    kept = reader.read([item.position for item in items if item.dead_letter_id is None])
    ids = [item.dead_letter_id for item in items if item.dead_letter_id is not None]
    dead_letters = store.dead_letters_by_id(ids, [item.position.topic for item in items]) if ids else {}
    found: list[tuple[Item, ConsumerRecord]] = []
    for item in items:
        if item.dead_letter_id is None:
            record = kept.get(item.position)
        else:
            dead_letter = dead_letters.get(item.dead_letter_id)
            # An earlier version's plan may name letters that do not decode.
            record = dead_letter.record if dead_letter is not None and refusal(dead_letter) is None else None
        if record is not None:
            found.append((item, record))
    return found
