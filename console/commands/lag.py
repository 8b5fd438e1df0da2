"""`heliograph lag`: how far each consumer group is behind, asked of Kafka itself.

May import runtime.kafka, lazily, and the names of the groups. Never: a judgement; that is the doctor's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from console.commands.client import Json
from console.commands.output import show
from console.commands.stack import DEFAULT_STATE_DIR, StateDir, settings_for

if TYPE_CHECKING:
    from runtime.kafka.admin import Admin


class GroupLag(NamedTuple):
    """Where a consumer group stands."""

    group: str
    unread: int
    """Records."""
    oldest_s: float | None
    """Age of the oldest unread record; None where there is none, or its time is not known."""
    members: int | None
    """Processes in the group; None where nothing is unread, so that nobody asked."""


def lag(as_json: Json = False, state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """How many records each consumer group has not read yet, the age of the oldest, and how many processes are in it."""
    from runtime.kafka.admin import Admin

    show([it._asdict() for it in lags(Admin(settings_for(state_dir).kafka))], as_json)


def lags(admin: Admin) -> Iterator[GroupLag]:
    """Of every group whose topics are there. Raises UnavailableError."""
    there = set(admin.partition_counts())
    for group, topics in consumer_groups().items():
        if there.issuperset(topics):
            yield lag_of(admin, group, topics)


def lag_of(admin: Admin, group: str, topics: Sequence[str]) -> GroupLag:
    """Raises UnavailableError."""
    committed, behind = admin.group_offsets(group, topics)
    first = admin.first_times(places) if (places := {p: committed[p] for p, count in behind.items() if count}) else {}
    times = [at for at in first.values() if at is not None and at > 0]
    unread = sum(count for partition, count in behind.items() if partition in first)
    oldest_s = round(max(0.0, time.time() - min(times) / 1_000), 1) if times else None
    return GroupLag(group, unread, oldest_s, admin.members([group])[group] if unread else None)


def consumer_groups() -> dict[str, list[str]]:
    """Every consumer group that keeps its place, and the topics it reads. The timers read theirs anew, and keep none."""
    from processors.groups import router_group
    from producers.reference.feedback_consumer import GROUP as FEEDBACK_GROUP
    from schemas.channels import CHANNELS
    from schemas.events import LANES
    from schemas.topics import STATUS, dispatch_topic, requests_topic
    from senders.hooks.stage import GROUP as HOOKS_GROUP
    from sinks.role import GROUP as SINK_GROUP
    from sinks.rows import SOURCES

    groups = {router_group(lane): [requests_topic(lane)] for lane in LANES}
    for channel in CHANNELS:
        groups[f"heliograph-sender-{channel}"] = [dispatch_topic(channel, lane) for lane in LANES]
    return {**groups, SINK_GROUP: list(SOURCES), FEEDBACK_GROUP: [STATUS], HOOKS_GROUP: [STATUS]}
