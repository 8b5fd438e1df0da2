"""Builds the plan: which records of a topic are published again.

    topic ──by time──► records ──their messages, by ClickHouse──► what would be done with each (plan.py)

May import replay and runtime. Never: publishing, output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from replay.plan import Item, Plan, RecordPosition, StoredMessage, decide_message, decide_request
from replay.records import decoded_message, decoded_request
from replay.source import scan
from replay.store import ReplayStore
from replay.template import TemplateVersion
from replay.times import UsageError
from replay.where import Condition
from runtime.ids import accepted_at
from runtime.settings import KafkaSettings
from schemas.events import ChannelMessage, NotificationRequest
from schemas.identity import hour_of
from schemas.topics import DAY_MS, Topic, catalogue, ledger_ms

REPLAYABLE = ("NotificationRequest", "ChannelMessage")
ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Selection:
    """What the operator asked for; times in ms."""

    topic: str
    since: int
    until: int
    condition: Condition
    where: str | None = None
    tenant: str | None = None
    resend: bool = False
    template: TemplateVersion | None = None
    """Only requests of this template, rendered with this version."""

    @property
    def filtered(self) -> bool:
        return self.where is not None


def check_topic(name: str) -> Topic:
    """The topic. Raises UsageError for one that cannot be replayed."""
    topic = catalogue().get(name)
    if topic is None or topic.record not in REPLAYABLE:
        names = ", ".join(t.name for t in catalogue().values() if t.record in REPLAYABLE)
        raise UsageError(f"{name} cannot be replayed: its records are no requests or messages; these can: {names}")
    return topic


def check_range(since: int, until: int, now: int, resend: bool) -> None:
    """Raises UsageError for an empty stretch, and for one that the ledger does not reach back to."""
    if since >= until:
        raise UsageError("--from is not before --to")
    if not resend and since < now - ledger_ms():
        raise UsageError(
            f"--from is more than {ledger_ms() // DAY_MS} days ago: the senders' ledger has forgotten what was sent then, so a replay could send it "
            "twice; choose a later time, or --resend to send it again on purpose"
        )


@dataclass(frozen=True, slots=True)
class _Request:
    position: RecordPosition
    request: NotificationRequest


@dataclass(frozen=True, slots=True)
class _Message:
    position: RecordPosition
    message: ChannelMessage


def build_plan(
    kafka: KafkaSettings, store: ReplayStore, selection: Selection, now: int, on_progress: ProgressCallback
) -> Plan:
    """The plan for a stretch of a topic. Raises UsageError, UnavailableError."""
    topic = check_topic(selection.topic)
    plan = Plan()
    if selection.template is not None and topic.record != "NotificationRequest":
        raise UsageError("--template renders requests: give a requests topic")
    if topic.record == "NotificationRequest":
        requests = _requests(kafka, selection, plan, on_progress)
        _plan_requests(store, selection, requests, plan, now)
    else:
        messages = _messages(kafka, selection, plan, on_progress)
        _plan_messages(store, selection, messages, plan, now)
    plan.items.sort(key=lambda item: (item.position.topic, item.position.partition, item.position.offset))
    return plan


def _requests(
    kafka: KafkaSettings, selection: Selection, plan: Plan, on_progress: ProgressCallback
) -> dict[str, _Request]:
    """By notification: of several records of one, the first of the highest generation. Copies of replays do not count."""
    found: dict[str, _Request] = {}
    for record in scan(kafka, selection.topic, selection.since, selection.until, on_progress):
        plan.looked_at += 1
        request = decoded_request(record.value)
        if request is None:
            plan.unreadable += 1
            continue
        if request.get("replay") is not None or (selection.tenant and request["tenant"] != selection.tenant):
            continue
        if selection.template is not None and request.get("template_id") != selection.template.template_id:
            plan.other_templates += 1
            continue
        known = found.get(request["notification_id"])
        if known is None or known.request.get("generation", 0) < request.get("generation", 0):
            found[request["notification_id"]] = _Request(RecordPosition(*record[:3]), small_request(request))
    return found


def _messages(
    kafka: KafkaSettings, selection: Selection, plan: Plan, on_progress: ProgressCallback
) -> dict[str, _Message]:
    """By message: the last of its records."""
    found: dict[str, _Message] = {}
    for record in scan(kafka, selection.topic, selection.since, selection.until, on_progress):
        plan.looked_at += 1
        message = decoded_message(record.value)
        if message is None:
            plan.unreadable += 1
        elif not selection.tenant or message["tenant"] == selection.tenant:
            found[message["message_id"]] = _Message(RecordPosition(*record[:3]), small_message(message))
    return found


def small_request(request: NotificationRequest) -> NotificationRequest:
    """Without what is not needed to decide: a million bodies would not fit."""
    return {**request, "data": b"", "content": None}


def small_message(message: ChannelMessage) -> ChannelMessage:
    """Likewise."""
    return {**message, "subject": None, "text": None, "html": None, "body": None, "data": None}


def by_hour(notification_ids: Iterable[str]) -> Iterator[tuple[int, set[str]]]:
    """Notifications by the hour (s since 1970) in which they were accepted."""
    hours: dict[int, set[str]] = {}
    for nid in notification_ids:
        hours.setdefault(hour_of(accepted_at(nid)), set()).add(nid)
    yield from sorted(hours.items())


def _plan_requests(store: ReplayStore, selection: Selection, found: dict[str, _Request], plan: Plan, now: int) -> None:
    for hour, nids in by_hour(found):
        tenants = {found[nid].request["tenant"] for nid in nids}
        stored_messages = store.stored_messages(hour, tenants, nids, selection.condition)
        generations = store.generations(hour)
        for nid in sorted(nids):
            one = found[nid]
            known = max(generations.get(nid, 0), one.request.get("generation", 0))
            item, decided = decide_request(
                one.position,
                one.request,
                stored_messages.get(nid, []),
                resend=selection.resend,
                filtered=selection.filtered,
                now=now,
                known_generation=known,
            )
            plan.add((_above(item, known, selection), decided))
            if item is not None and selection.template is not None:
                plan.pinned += one.request.get("template_version") not in (None, selection.template.version)


def _plan_messages(store: ReplayStore, selection: Selection, found: dict[str, _Message], plan: Plan, now: int) -> None:
    by_notification: dict[str, list[str]] = {}
    for message_id, one in found.items():
        by_notification.setdefault(one.message["notification_id"], []).append(message_id)
    for hour, nids in by_hour(by_notification):
        ids_of_hour = [message_id for nid in sorted(nids) for message_id in by_notification[nid]]
        tenants = {found[message_id].message["tenant"] for message_id in ids_of_hour}
        stored_messages = by_message(store.stored_messages(hour, tenants, nids, selection.condition))
        generations = store.generations(hour)
        for message_id in ids_of_hour:
            one = found[message_id]
            known = max(generations.get(one.message["notification_id"], 0), one.message["generation"])
            item, decided = decide_message(
                one.position,
                one.message,
                stored_messages.get(message_id),
                resend=selection.resend,
                filtered=selection.filtered,
                now=now,
            )
            plan.add((_above(item, known, selection), decided))


def by_message(stored_messages: dict[str, list[StoredMessage]]) -> dict[str, StoredMessage]:
    """The messages by their ids."""
    return {s.message_id: s for of_one in stored_messages.values() for s in of_one if s.message_id}


def _above(item: Item | None, known: int, selection: Selection) -> Item | None:
    """A resend's item carries the highest generation there was until its own is claimed."""
    if item is None or not selection.resend:
        return item
    return replace(item, generation=known)
