"""The topics of schemas/topics.yaml as data.

May import yaml and schemas. Never: a Kafka client; what a topic is used for in code.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from schemas.channels import CHANNELS
from schemas.events import LANES, RecordName

STATUS = "notify.status.v1"
RECEIPTS = "notify.receipts.v1"
REFERENCES = "notify.references.v1"
TIMERS = "notify.timers.v1"
RECIPIENTS = "notify.recipients.v1"
TEMPLATES = "notify.templates.v1"
SUPPRESSIONS = "notify.suppressions.v1"
ENDPOINTS = "notify.endpoints.v1"
HOOK_POSITIONS = "notify.hookpositions.v1"
CANCELLATIONS = "notify.cancellations.v1"
DEAD_LETTERS = "notify.deadletters.v1"
CONDITIONS = "notify.conditions.v1"
REPLAYS = "notify.replays.v1"
REPLAY_ITEMS = "notify.replayitems.v1"

MAX_VALUE_BYTES = 1 << 20
"""Of a record's value on any topic but the dead letters': checked where it is encoded, and again before it is decoded."""
MAX_MESSAGE_BYTES = 2 * MAX_VALUE_BYTES + (64 << 10)
"""What a topic but the dead letters' takes at once: the largest value, a key made of what is in it, headers and framing."""
MAX_DEAD_LETTER_BYTES = 3 << 20
"""Of a dead letter: it holds a record of the largest size, whose key is its own key as well, and says what was wrong."""

DAY_MS = 86_400_000


def requests_topic(lane: str) -> str:
    """Requests of a lane."""
    return f"notify.requests.{lane}.v1"


_REQUESTS = {requests_topic(lane): lane for lane in LANES}


def lane_of(topic: str) -> str:
    """The lane of a requests topic: the topic decides, whatever a record says. Raises ValueError for a topic of other records."""
    lane = _REQUESTS.get(topic)
    if lane is None:
        raise ValueError(f"{topic} has no requests of a lane")
    return lane


def dispatch_topic(channel: str, lane: str) -> str:
    """Rendered messages of a channel and lane."""
    return f"notify.dispatch.{channel}.{lane}.v1"


def ledger_topic(channel: str, lane: str) -> str:
    """The ledger beside a dispatch topic, partition by partition."""
    return f"notify.ledger.{channel}.{lane}.v1"


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: `partitions` by profile (local, default), `retention_days` None where compaction alone decides."""

    name: str
    record: RecordName
    key: str
    policy: str
    retention_days: int | None
    partitions: dict[str, int]
    public: bool
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    description: str

    @property
    def config(self) -> dict[str, str]:
        """Kafka topic configuration where there is one copy."""
        return self.config_for(1)

    def config_for(self, replication: int) -> dict[str, str]:
        """Kafka topic configuration for a number of copies: an acknowledged record is on all of them but one at least."""
        dead_letters = self.name == DEAD_LETTERS  # otherwise a record of the largest size could not be dead-lettered
        config = {
            "cleanup.policy": self.policy,
            "min.insync.replicas": str(max(1, replication - 1)),
            "max.message.bytes": str(MAX_DEAD_LETTER_BYTES if dead_letters else MAX_MESSAGE_BYTES),
            # Only whole segments are deleted or compacted, and Kafka closes one after a week: records would stay longer.
            "segment.ms": str(DAY_MS),
        }
        if self.retention_days is not None:
            config["retention.ms"] = str(self.retention_days * DAY_MS)
        if "compact" in self.policy:
            # A reader that was down for a day still sees every tombstone.
            config |= {"delete.retention.ms": str(DAY_MS), "max.compaction.lag.ms": str(DAY_MS)}
        return config


def _expand(spec: dict[str, Any], lanes: list[str]) -> list[Topic]:
    names = [spec["name"]]
    for placeholder, values in (("{lane}", lanes), ("{channel}", CHANNELS)):
        names = (
            [name.replace(placeholder, value) for name in names for value in values]
            if placeholder in spec["name"]
            else names
        )
    return [
        Topic(
            name=name,
            record=spec["record"],
            key=spec["key"],
            policy=spec["policy"],
            retention_days=spec.get("retention_days"),
            partitions=dict(spec["partitions"]),
            public=spec["public"],
            producers=tuple(spec["producers"]),
            consumers=tuple(spec["consumers"]),
            description=spec["description"],
        )
        for name in names
    ]


@cache
def catalogue() -> dict[str, Topic]:
    """Every topic by name."""
    registry = yaml.safe_load(files("schemas").joinpath("topics.yaml").read_text("utf-8"))
    topics = [t for spec in registry["topics"] for t in _expand(spec, registry["lanes"])]
    return {topic.name: topic for topic in topics}


@cache
def retention_s(topic: str) -> int | None:
    """For how long (s) a topic keeps a record, None for one that keeps the last of each key for good."""
    days = catalogue()[topic].retention_days
    return None if days is None else days * DAY_MS // 1_000


def ledger_ms() -> int:
    """How long (ms) the senders' ledger remembers a message: the shortest retention of its topics."""
    ledgers = [topic for topic in catalogue().values() if topic.record == "LedgerEntry"]
    return DAY_MS * min(topic.retention_days for topic in ledgers if topic.retention_days is not None)
