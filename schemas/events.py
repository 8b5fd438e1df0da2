"""The records as Python types, one TypedDict per Avro record; times are int milliseconds since the epoch, UTC.

A test holds each type against its .avsc. Also the closed lists of states and reasons (schemas/reasons.yaml).
May import the standard library and yaml. Never: behaviour of a stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, NotRequired, TypedDict

import yaml

RecordName = Literal[
    "NotificationRequest",
    "ChannelMessage",
    "DeliveryStatus",
    "ProviderReceipt",
    "Reference",
    "LedgerEntry",
    "Timer",
    "RecipientProfile",
    "Template",
    "Suppression",
    "Endpoint",
    "HookPosition",
    "Cancellation",
    "DeadLetter",
    "Condition",
    "ReplayState",
    "ReplayItem",
]


class Address(TypedDict):
    channel: str
    value: str
    platform: str | None


class NotificationRequest(TypedDict):
    notification_id: str
    tenant: str
    accepted_at: int
    idempotency_key: NotRequired[str | None]
    user_id: NotRequired[str | None]
    addresses: NotRequired[list[Address]]
    template_id: NotRequired[str | None]
    template_version: NotRequired[int | None]
    data: NotRequired[bytes]
    content: NotRequired[bytes | None]
    category: NotRequired[str]
    lane: NotRequired[str]
    channels: NotRequired[list[str]]
    strategy: NotRequired[str]
    locale: NotRequired[str | None]
    send_at: NotRequired[int | None]
    expires_at: NotRequired[int | None]
    delivery: NotRequired[str]
    tags: NotRequired[list[str]]
    metadata: NotRequired[dict[str, str]]
    overrides: NotRequired[bytes | None]
    generation: NotRequired[int]
    replay: NotRequired[str | None]
    dry_run: NotRequired[bool]
    correlation_id: NotRequired[str | None]
    source: NotRequired[str]


class ChannelMessage(TypedDict):
    message_id: str
    notification_id: str
    tenant: str
    accepted_at: int
    channel: str
    lane: str
    category: str
    user_id: str | None
    address: str
    platform: str | None
    subject: str | None
    text: str | None
    html: str | None
    title: str | None
    body: str | None
    data: bytes | None
    attempt: int
    retries: int
    generation: int
    delivery: str
    expires_at: int | None
    template_id: str | None
    template_version: int | None
    preference_version: int | None
    possible_duplicate: bool
    correlation_id: str | None
    overrides: bytes | None
    provider: str | None
    replay: str | None
    routed_at: int


class Source(TypedDict):
    topic: str
    partition: int
    offset: int


class DeliveryStatus(TypedDict):
    event_id: str
    notification_id: str
    message_id: str | None
    tenant: str
    channel: str | None
    lane: str
    state: str
    reason: str | None
    detail: str | None
    attempt: int
    provider: str | None
    provider_message_id: str | None
    possible_duplicate: bool
    template_id: str | None
    template_version: int | None
    preference_version: int | None
    occurred_at: int
    latency_ms: int | None
    source: Source | None
    correlation_id: str | None
    recipient: str | None
    opted_out: bool
    invalid_since: int | None
    category: str | None
    locale: str | None
    domain: str | None
    code: str | None
    due_at: int | None


class ProviderReceipt(TypedDict):
    event_id: str
    provider: str
    provider_message_id: str
    message_id: str | None
    state: str
    reason: str | None
    code: str | None
    occurred_at: int
    received_at: int
    raw: bytes
    channel: str | None
    tenants: list[str]
    recipient: str | None


class Reference(TypedDict):
    provider: str
    reference: str
    message_id: str
    notification_id: str
    tenant: str
    lane: str
    attempt: int
    recipient: str | None
    recorded_at: int


class LedgerEntry(TypedDict):
    message_id: str
    next_attempt: int
    state: str | None
    recorded_at: int


class Header(TypedDict):
    name: str
    value: bytes


class Timer(TypedDict):
    timer_id: str
    due_at: int
    purpose: str
    topic: str
    key: bytes
    headers: list[Header]
    value: bytes


class Device(TypedDict):
    platform: str
    token: str | None
    subscription: bytes | None


class RecipientProfile(TypedDict):
    tenant: str
    user_id: str
    name: str | None
    email: str | None
    phone: str | None
    locale: str | None
    time_zone: str | None
    devices: list[Device]
    channels: dict[str, bool]
    categories: dict[str, dict[str, bool]]
    version: int
    updated_at: int


class Template(TypedDict):
    tenant: str
    template_id: str
    version: int
    category: str
    channels: bytes
    locales: bytes
    variables: list[str]
    updated_at: int


class Suppression(TypedDict):
    suppression_id: str
    tenant: str
    channel: str
    address_hash: str
    reason: str
    expires_at: int | None
    created_at: int


class Endpoint(TypedDict):
    endpoint_id: str
    tenant: str
    url: str
    states: list[str]
    channels: list[str]
    categories: list[str]
    enabled: bool
    secret: bytes
    previous_secret: bytes | None
    previous_until: int | None
    replays: int
    since: int
    version: int
    updated_at: int


class OwedFact(TypedDict):
    offset: int
    attempts: int
    due_at: int


class HookPosition(TypedDict):
    endpoint_id: str
    tenant: str
    partition: int
    position: int
    owed: list[OwedFact]
    replays: int
    endpoint_version: int
    condition: str
    cause: str | None
    failures: int
    failing_since: int | None
    next_at: int | None
    behind: int
    dropped: int
    given_up: int
    recorded_at: int


class Cancellation(TypedDict):
    notification_id: str
    tenant: str
    requested_at: int


class DeadLetter(TypedDict):
    dead_letter_id: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[Header]
    stage: str
    reason: str
    error_class: str
    detail: str | None
    attempts: int
    tenant: str | None
    notification_id: str | None
    message_id: str | None
    occurred_at: int


class Condition(TypedDict):
    subject: str
    name: str
    channel: str | None
    process: str
    state: str
    detail: str | None
    since: int | None
    next_at: int | None
    stated_at: int


class ReplayState(TypedDict):
    replay_id: str
    command: str
    topic: str
    filter: str
    template: str
    tenant: str
    requested_by: str
    note: str
    planned: int
    published: int
    gone: int
    counts: str
    state: str
    error: str
    from_at: int | None
    to_at: int | None
    started_at: int
    updated_at: int
    finished_at: int | None


class ReplayItem(TypedDict):
    replay_id: str
    seq: int
    topic: str
    partition: int
    offset: int
    tenant: str
    notification_id: str | None
    message_id: str | None
    dead_letter_id: str | None
    channels: list[str]
    generation: int
    attempt: int
    possible_duplicate: bool
    planned_at: int


RECORD_TYPES: dict[RecordName, type] = {
    "NotificationRequest": NotificationRequest,
    "ChannelMessage": ChannelMessage,
    "DeliveryStatus": DeliveryStatus,
    "ProviderReceipt": ProviderReceipt,
    "Reference": Reference,
    "LedgerEntry": LedgerEntry,
    "Timer": Timer,
    "RecipientProfile": RecipientProfile,
    "Template": Template,
    "Suppression": Suppression,
    "Endpoint": Endpoint,
    "HookPosition": HookPosition,
    "Cancellation": Cancellation,
    "DeadLetter": DeadLetter,
    "Condition": Condition,
    "ReplayState": ReplayState,
    "ReplayItem": ReplayItem,
}

LANES = ("critical", "normal", "bulk")


@dataclass(frozen=True, slots=True)
class States:
    """The closed lists: rank by state, reasons by settled state, and the order that sums messages up."""

    rank: dict[str, int]
    settled: frozenset[str]
    reasons: dict[str, tuple[str, ...]]
    events: frozenset[str]
    event_reasons: frozenset[str]
    """What an event that changes no state may carry as its reason."""
    engagement: frozenset[str]
    best_first: tuple[str, ...]
    retriable: frozenset[str]
    """Settled states in which the recipient does not, and cannot, have the message: a replay may try again."""
    means: dict[str, str]
    """What each state, event and engagement says, in words."""
    words: dict[str, str]
    """What each reason says, in words."""

    @property
    def all(self) -> frozenset[str]:
        """Every value of DeliveryStatus.state."""
        return frozenset(self.rank) | self.events | self.engagement


@cache
def states() -> States:
    """Read schemas/reasons.yaml once."""
    lists = yaml.safe_load(files("schemas").joinpath("reasons.yaml").read_text("utf-8"))
    ranked = {**lists["flow"], **lists["settled"]}
    return States(
        rank={state: spec["rank"] for state, spec in ranked.items()},
        settled=frozenset(lists["settled"]),
        reasons={state: tuple(spec.get("reasons", ())) for state, spec in lists["settled"].items()},
        events=frozenset(lists["events"]),
        event_reasons=frozenset(reason for spec in lists["events"].values() for reason in spec.get("reasons", ())),
        engagement=frozenset(lists["engagement"]),
        best_first=tuple(lists["best_first"]),
        retriable=frozenset(lists["retriable"]),
        means={
            word: spec["means"]
            for part in ("flow", "settled", "events", "engagement")
            for word, spec in lists[part].items()
        },
        words=lists["words"],
    )
