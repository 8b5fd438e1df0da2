"""Builds the plan: which records of a topic, or which dead letters, are published again.

    topic ──by time──► records ──their messages, by ClickHouse──► what would be done with each (plan.py)

May import replay and runtime. Never: publishing, output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from replay.plan import Decision, Item, Plan, RecordPosition, Row, StoredMessage, decide_message, decide_request
from replay.records import decoded_message, decoded_request
from replay.source import scan
from replay.store import ReplayStore, StoredDeadLetter
from replay.times import UsageError
from replay.where import Condition
from runtime.dead_letters import is_cut
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
    """The plan for a stretch of a topic."""
    topic = check_topic(selection.topic)
    plan = Plan()
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
        known = found.get(request["notification_id"])
        if known is None or known.request.get("generation", 0) < request.get("generation", 0):
            found[request["notification_id"]] = _Request(RecordPosition(*record[:3]), _small_request(request))
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
            found[message["message_id"]] = _Message(RecordPosition(*record[:3]), _small_message(message))
    return found


def _small_request(request: NotificationRequest) -> NotificationRequest:
    """Without what is not needed to decide: a million bodies would not fit."""
    return {**request, "data": b"", "content": None}


def _small_message(message: ChannelMessage) -> ChannelMessage:
    return {**message, "subject": None, "text": None, "html": None, "body": None, "data": None}


def _by_hour(notification_ids: Iterable[str]) -> Iterator[tuple[int, set[str]]]:
    hours: dict[int, set[str]] = {}
    for nid in notification_ids:
        hours.setdefault(hour_of(accepted_at(nid)), set()).add(nid)
    yield from sorted(hours.items())


def _plan_requests(store: ReplayStore, selection: Selection, found: dict[str, _Request], plan: Plan, now: int) -> None:
    for hour, nids in _by_hour(found):
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


def _plan_messages(store: ReplayStore, selection: Selection, found: dict[str, _Message], plan: Plan, now: int) -> None:
    by_notification: dict[str, list[str]] = {}
    for message_id, one in found.items():
        by_notification.setdefault(one.message["notification_id"], []).append(message_id)
    for hour, nids in _by_hour(by_notification):
        ids_of_hour = [message_id for nid in sorted(nids) for message_id in by_notification[nid]]
        tenants = {found[message_id].message["tenant"] for message_id in ids_of_hour}
        stored_messages = _by_message(store.stored_messages(hour, tenants, nids, selection.condition))
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


def _by_message(stored_messages: dict[str, list[StoredMessage]]) -> dict[str, StoredMessage]:
    return {s.message_id: s for of_one in stored_messages.values() for s in of_one if s.message_id}


def _above(item: Item | None, known: int, selection: Selection) -> Item | None:
    """A resend's item carries the highest generation there was until its own is claimed."""
    if item is None or not selection.resend:
        return item
    return replace(item, generation=known)


# -- dead letters -----------------------------------------------------------------------------------------------------

_REFUSALS = {
    "view": "a newer value may be there already: publish the value again at its source",
    "ledger": "a newer entry may be there already: the ledger mends itself with the message's next attempt",
    "timers": "its moment and its order are lost: replay the request it belongs to",
    "sink": "the record itself is still in its topic and was delivered: only its row is missing",
}


def refusal(dead_letter: StoredDeadLetter) -> str | None:
    """Why a dead letter cannot be published again, None when it can."""
    if dead_letter.stage in _REFUSALS:
        return _REFUSALS[dead_letter.stage]
    topic = catalogue().get(dead_letter.record.topic)
    if dead_letter.stage not in ("router", "sender") or topic is None or topic.record not in REPLAYABLE:
        return f"nothing is known of how to redrive the stage {dead_letter.stage}"
    if dead_letter.record.value is None:
        return "it has no value"
    if is_cut(dead_letter.detail):
        return "it holds only a part of its record, which was larger than a letter: publish the whole at its source"
    if topic.record == "ChannelMessage" and decoded_message(dead_letter.record.value) is None:
        return "it is no rendered message: replay the request it belongs to"
    return None


@dataclass(frozen=True, slots=True)
class _Given:
    """What counts of a letter, without its bytes: a million of them would not fit."""

    dead_letter_id: str
    position: RecordPosition
    tenant: str
    attempts: int
    occurred_at: int
    message: ChannelMessage | None
    request: NotificationRequest | None

    @property
    def notification_id(self) -> str | None:
        found = self.message or self.request
        return found["notification_id"] if found is not None else None

    @property
    def about(self) -> str | None:
        return self.message["message_id"] if self.message is not None else self.notification_id


def _given(dead_letter: StoredDeadLetter) -> _Given:
    message = decoded_message(dead_letter.record.value) if dead_letter.stage == "sender" else None
    request = decoded_request(dead_letter.record.value) if dead_letter.stage == "router" else None
    return _Given(
        dead_letter.dead_letter_id,
        RecordPosition(*dead_letter.record[:3]),
        dead_letter.tenant,
        dead_letter.attempts,
        dead_letter.occurred_at,
        None if message is None else _small_message(message),
        None if request is None else _small_request(request),
    )


def build_redrive_plan(store: ReplayStore, dead_letters: Iterable[StoredDeadLetter], now: int) -> Plan:
    """The plan for dead letters; of several about one message or notification the latest counts."""
    plan = Plan()
    latest: dict[str, _Given] = {}
    for dead_letter in dead_letters:
        plan.looked_at += 1
        if why := refusal(dead_letter):
            plan.count(
                Row(dead_letter.stage, "dead letter", dead_letter.reason, Decision.REFUSED, why),
                dead_letter.dead_letter_id,
            )
            continue
        given = _given(dead_letter)
        if given.about is None:  # bytes as they were: nothing is known of them
            plan.items.append(Item(given.position, given.tenant, None, dead_letter_id=given.dead_letter_id))
            plan.count(
                Row(dead_letter.stage, "dead letter", dead_letter.reason, Decision.TRY), dead_letter.dead_letter_id
            )
        elif given.about not in latest or latest[given.about].occurred_at < given.occurred_at:
            latest[given.about] = given
    by_notification: dict[str, list[_Given]] = {}
    for given in latest.values():
        assert given.notification_id is not None, "what says what it is about names its notification"
        by_notification.setdefault(given.notification_id, []).append(given)
    for hour, nids in _by_hour(by_notification):
        mine = [given for nid in sorted(nids) for given in by_notification[nid]]
        stored_messages = store.stored_messages(hour, {given.tenant for given in mine}, nids, Condition())
        generations = store.generations(hour)
        by_message = _by_message(stored_messages)
        for given in mine:
            plan.add(_decide_dead_letter(given, stored_messages, by_message, generations, now))
    plan.items.sort(key=lambda item: (item.position.topic, item.position.partition, item.position.offset))
    return plan


def _decide_dead_letter(
    given: _Given,
    stored_messages: dict[str, list[StoredMessage]],
    by_message: dict[str, StoredMessage],
    generations: dict[str, int],
    now: int,
) -> tuple[Item | None, list[tuple[StoredMessage, Decision]]]:
    if given.message is not None:
        stored = by_message.get(given.message["message_id"])
        # Beyond the attempts of the letter, lest a new outcome stand beside an old one of the same attempt.
        attempt = max(given.attempts, stored.attempts if stored else 0) + 1
        return decide_message(
            given.position,
            given.message,
            stored,
            resend=False,
            filtered=False,
            now=now,
            attempt=attempt,
            dead_letter_id=given.dead_letter_id,
        )
    assert given.request is not None
    nid = given.request["notification_id"]
    return decide_request(
        given.position,
        given.request,
        stored_messages.get(nid, []),
        resend=False,
        filtered=False,
        now=now,
        dead_letter_id=given.dead_letter_id,
        known_generation=generations.get(nid, 0),
    )
