"""Re-drive: which dead letters can be published again, and the plan for them.

    | the letter                                        | becomes                                             |
    |---------------------------------------------------|-----------------------------------------------------|
    | of a stage whose records must not come back       | refused, with what to do instead                    |
    | does not decode now                               | refused, with what is wrong with it; it stays       |
    | decodes now                                       | a copy that carries its id, as plan.py decides      |
    | of several about one message or notification      | the latest                                          |

May import replay and the stages that read such records. Never: publishing, output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from processors.router.intake import read_request
from replay.choose import REPLAYABLE, by_hour, by_message, small_message, small_request
from replay.plan import Decision, Item, Plan, RecordPosition, Row, StoredMessage, decide_message, decide_request
from replay.records import decoded_message, decoded_request
from replay.store import ReplayStore, StoredDeadLetter
from replay.where import Condition
from runtime.dead_letters import is_cut
from runtime.ids import accepted_at
from runtime.records import ConsumerRecord
from schemas.codec import DecodeError
from schemas.events import ChannelMessage, NotificationRequest
from schemas.topics import catalogue
from senders.intake import read_message

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
    return _fault(dead_letter.record, topic.record)


def _fault(record: ConsumerRecord, name: str) -> str | None:
    """What its stage would find wrong with a record of this name now."""
    try:
        if name == "NotificationRequest":
            read_request(record)
            return None
        message = read_message(record)
    except DecodeError as exc:
        return f"it still does not decode: {exc}"
    try:
        accepted_at(message["notification_id"])
    except ValueError as exc:
        return f"nothing of it can be found: {exc}"
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
    def notification_id(self) -> str:
        found = self.message or self.request
        assert found is not None, "what does not decode was refused"
        return found["notification_id"]

    @property
    def about(self) -> str:
        return self.message["message_id"] if self.message is not None else self.notification_id


def _given(dead_letter: StoredDeadLetter) -> _Given:
    name = catalogue()[dead_letter.record.topic].record
    message = decoded_message(dead_letter.record.value) if name == "ChannelMessage" else None
    request = decoded_request(dead_letter.record.value) if name == "NotificationRequest" else None
    return _Given(
        dead_letter.dead_letter_id,
        RecordPosition(*dead_letter.record[:3]),
        dead_letter.tenant,
        dead_letter.attempts,
        dead_letter.occurred_at,
        None if message is None else small_message(message),
        None if request is None else small_request(request),
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
        if given.about not in latest or latest[given.about].occurred_at < given.occurred_at:
            latest[given.about] = given
    by_notification: dict[str, list[_Given]] = {}
    for given in latest.values():
        by_notification.setdefault(given.notification_id, []).append(given)
    for hour, nids in by_hour(by_notification):
        mine = [given for nid in sorted(nids) for given in by_notification[nid]]
        stored_messages = store.stored_messages(hour, {given.tenant for given in mine}, nids, Condition())
        generations = store.generations(hour)
        of_messages = by_message(stored_messages)
        for given in mine:
            plan.add(_decide_dead_letter(given, stored_messages, of_messages, generations, now))
    plan.items.sort(key=lambda item: (item.position.topic, item.position.partition, item.position.offset))
    return plan


def _decide_dead_letter(
    given: _Given,
    stored_messages: dict[str, list[StoredMessage]],
    of_messages: dict[str, StoredMessage],
    generations: dict[str, int],
    now: int,
) -> tuple[Item | None, list[tuple[StoredMessage, Decision]]]:
    if given.message is not None:
        stored = of_messages.get(given.message["message_id"])
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
