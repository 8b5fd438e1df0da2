"""`heliograph reconcile`: who is asked, how often, and what an answer becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import UUID

import pytest

from replay.plan import RecordPosition
from replay.reconcile import Looked, Pace, Reconciliation, UnknownMessage, reconcile
from runtime import ids
from runtime.records import ConsumerRecord, ProducerRecord
from schemas.codec import codec
from schemas.topics import REFERENCES, STATUS
from tests.support.made import NOW, message
from vendors.sender import CANNOT_ASK, NOT_FOUND, Doubt, ErrorClass, Rejected, Retry, SendResult, Sent

NID = ids.notification_id(NOW - 100, "t")
AT = RecordPosition("notify.dispatch.sms.normal.v1", 0, 7)
SENT = message(channel="sms", address="+4915112345678", notification_id=NID, text="Hello")
UNKNOWN = UnknownMessage(SENT["message_id"], NID, "t", "sms", "normal", "u1", "sms-1", 3, AT)


class Asked:
    """An account that can be asked."""

    def __init__(self, name: str, *answers: SendResult | Exception) -> None:
        self.name, self._answers = name, list(answers)
        self.doubts: list[Doubt] = []

    async def start(self) -> None: ...
    async def close(self) -> None: ...

    async def look_up(self, doubt: Doubt) -> SendResult:
        self.doubts.append(doubt)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Dispatched:
    """What Kafka still has."""

    def __init__(self, *records: ConsumerRecord) -> None:
        self._records = {RecordPosition(r.topic, r.partition, r.offset): r for r in records}

    def read(self, positions: Sequence[RecordPosition]) -> dict[RecordPosition, ConsumerRecord]:
        return {position: self._records[position] for position in positions if position in self._records}


def dispatched(value: Any = SENT, timestamp: int = NOW) -> ConsumerRecord:
    encoded = value if isinstance(value, bytes) else codec("ChannelMessage").encode(value)
    return ConsumerRecord(AT.topic, AT.partition, AT.offset, timestamp, b"t:u", encoded)


async def look_up(
    *accounts: Asked,
    unknown: UnknownMessage = UNKNOWN,
    records: Sequence[ConsumerRecord] = (),
    publish: Callable[[Sequence[ProducerRecord]], None] | None = None,
    channel: str = "sms",
) -> Looked:
    asking = Reconciliation(
        (), Dispatched(*records), Pace(1e6), lambda: NOW + 5, cast(Any, {a.name: a for a in accounts})
    )
    asking._channels = {account.name: channel for account in accounts}
    (found,) = [looked async for looked in reconcile([[unknown]], asking, publish)]
    return found


async def test_message_that_its_provider_has_becomes_sent_under_an_id_of_its_own() -> None:
    published: list[ProducerRecord] = []
    asked = Asked("sms-1", Sent("theirs", reference="ref"))
    for _ in range(2):
        found = await look_up(asked, records=[dispatched()], publish=published.extend)
    assert (found.outcome, found.provider) == ("found", "sms-1")
    assert asked.doubts[0] == Doubt(SENT["message_id"], NOW, "+4915112345678", "Hello")
    statuses = [codec("DeliveryStatus").decode(record.value) for record in published if record.topic == STATUS]
    assert len({status["event_id"] for status in statuses}) == 1
    status = statuses[0]
    assert (status["state"], status["provider"], status["provider_message_id"]) == ("sent", "sms-1", "theirs")
    assert (status["attempt"], status["recipient"], status["source"]) == (3, "u1", None)
    (reference, _) = [codec("Reference").decode(record.value) for record in published if record.topic == REFERENCES]
    assert (reference["reference"], reference["message_id"]) == ("ref", SENT["message_id"])


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(NOT_FOUND, "not_shown"), (CANNOT_ASK, "cannot_ask"), (Retry(ErrorClass.TRANSIENT, "503"), "failed")],
)
async def test_what_proves_nothing_publishes_nothing(
    answer: SendResult, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def at_once(_: float) -> None: ...

    monkeypatch.setattr("replay.reconcile.asyncio.sleep", at_once)
    published: list[ProducerRecord] = []
    asked = Asked("sms-1", answer)
    found = await look_up(asked, publish=published.extend)
    assert (found.outcome, published) == (outcome, [])
    assert len(asked.doubts) == (3 if outcome == "failed" else 1)


async def test_provider_that_refused_it_ends_it_so() -> None:
    published: list[ProducerRecord] = []
    refused = Rejected(ErrorClass.PERMANENT_RECIPIENT, "BLOCKED", opted_out=True)
    found = await look_up(Asked("sms-1", refused), publish=published.extend)
    (status,) = [codec("DeliveryStatus").decode(record.value) for record in published]
    assert (found.outcome, status["state"], status["reason"], status["opted_out"]) == (
        "refused",
        "bounced",
        "invalid_number",
        True,
    )


async def test_account_that_is_not_known_is_sought_among_those_of_the_channel() -> None:
    unknown = UNKNOWN.__class__(**{**{f: getattr(UNKNOWN, f) for f in UNKNOWN.__dataclass_fields__}, "provider": None})
    first, second, third = Asked("sms-1", NOT_FOUND), Asked("sms-2", Sent("theirs")), Asked("sms-3", Sent("no"))
    found = await look_up(first, second, third, unknown=unknown)
    assert (found.provider, len(third.doubts)) == ("sms-2", 0)


async def test_account_that_cannot_be_asked_or_is_gone_is_not_asked() -> None:
    other = Asked("sms-2", Sent("no"))
    found = await look_up(other)
    assert (found.outcome, other.doubts) == ("cannot_ask", [])


@pytest.mark.parametrize("value", [b"poison", {**SENT, "message_id": "6f1c3a52-7e0b-5d0f-9d3a-0f6d7f0c1a2b"}])
async def test_record_that_is_not_the_messages_tells_nothing_of_it(value: Any) -> None:
    asked = Asked("sms-1", NOT_FOUND)
    await look_up(asked, records=[dispatched(value)])
    assert asked.doubts == [Doubt(SENT["message_id"], NOW - 100)]


async def test_look_up_that_raises_costs_its_message_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: float) -> None: ...

    monkeypatch.setattr("replay.reconcile.asyncio.sleep", at_once)
    assert (await look_up(Asked("sms-1", RuntimeError("boom")))).outcome == "failed"
    odd = UNKNOWN.__class__(
        **{**{f: getattr(UNKNOWN, f) for f in UNKNOWN.__dataclass_fields__}, "notification_id": str(UUID(int=0))}
    )
    assert (await look_up(Asked("sms-1", NOT_FOUND), unknown=odd)).outcome == "not_shown"
