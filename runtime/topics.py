"""Bring the cluster's topics in line with schemas/topics.yaml: create, configure, never shrink or re-partition.

Limits are floors: what an operator raised, be it time, size or copies, stays as it is.

May import runtime.kafka. Never: a topic name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runtime.errors import TopicsError
from runtime.kafka.admin import Admin
from schemas.topics import catalogue

Profile = Literal["local", "default"]


_FLOORS = frozenset({"min.insync.replicas", "retention.ms", "max.message.bytes", "delete.retention.ms"})
_CEILINGS = frozenset({"segment.ms", "max.compaction.lag.ms"})
"""Longer, and deleting and compacting come later than the retention says."""
_FOR_EVER = -1


@dataclass(frozen=True, slots=True)
class TopicDifference:
    """One way in which a topic of the cluster is not the catalogue's."""

    topic: str
    what: Literal["missing", "partitions", "config"]
    entry: str
    wanted: str
    actual: str


def diff(admin: Admin, profile: Profile) -> list[TopicDifference]:
    """Every difference, [] when the cluster is as the catalogue says."""
    counts = admin.partition_counts()
    replication = admin.replication()
    configs = admin.configs([name for name in catalogue() if name in counts])
    found: list[TopicDifference] = []
    for name, topic in catalogue().items():
        wanted = topic.partitions[profile]
        if name not in counts:
            found.append(TopicDifference(name, "missing", "topic", f"{wanted} partitions", "missing"))
            continue
        if counts[name] != wanted:
            found.append(TopicDifference(name, "partitions", "partitions", str(wanted), str(counts[name])))
        for key, value in topic.config_for(replication[name]).items():
            actual = configs[name].get(key, "")
            if not satisfies(key, value, actual):
                found.append(TopicDifference(name, "config", key, value, actual))
    return found


def satisfies(key: str, wanted: str, actual: str) -> bool:
    """Whether a topic's configuration entry does what the catalogue wants of it."""
    if key in _FLOORS or key in _CEILINGS:
        try:
            has = int(actual)
            wants = int(wanted)
        except ValueError:
            return False
        if key in _FLOORS:
            return has >= wants or (key == "retention.ms" and has == _FOR_EVER)
        return has <= wants
    # Brokers list policies in any order.
    return sorted(actual.split(",")) == sorted(wanted.split(","))


def apply(admin: Admin, profile: Profile, replication: int = 1) -> list[TopicDifference]:
    """Create what is missing and set what differs; returns what was done.

    Raises TopicsError before anything is done when a partition count differs: more partitions would tear the order of
    keys and the ledger apart, fewer are impossible.
    """
    differences = diff(admin, profile)
    wrong = [d for d in differences if d.what == "partitions"]
    if wrong:
        listed = ", ".join(f"{d.topic} has {d.actual}, wants {d.wanted}" for d in wrong)
        raise TopicsError(
            f"partition counts are fixed once chosen: {listed}; apply with the profile they were made with"
        )
    missing = {d.topic for d in differences if d.what == "missing"}
    admin.create([topic for name, topic in catalogue().items() if name in missing], profile, replication)
    changes: dict[str, dict[str, str]] = {}
    for difference in differences:
        if difference.what == "config":
            changes.setdefault(difference.topic, {})[difference.entry] = difference.wanted
    admin.alter_configs(changes)
    return differences
