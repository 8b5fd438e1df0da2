"""Cancel and resend on a store, a broker and a topic that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from producers.reference.resends import RESENDABLE_MS
from runtime import ids
from runtime.errors import PublishError, Refusal, RefusedError, UnavailableError
from runtime.records import ProducerRecord
from schemas.codec import codec
from schemas.events import NotificationRequest, states
from schemas.topics import MAX_VALUE_BYTES
from senders.recheck import SenderViews, recheck
from tests.unit.test_status_rollup import NOW, A, FakeStore, fact
from tracking import control
from tracking.control import Control
from tracking.original import Original
from tracking.status import Found, Statuses

NID = ids.notification_id(NOW - 3_600_000, "mine")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PAUSES_S", (0.0,) * 3)


class FakeBroker:
    def __init__(self) -> None:
        self.records: list[ProducerRecord] = []
        self.failures = 0
        self.takes_s = 0.0

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        await asyncio.sleep(self.takes_s)
        if self.failures:
            self.failures -= 1
            raise PublishError("the broker did not acknowledge")
        self.records += records

    def decoded(self) -> list[Any]:
        return [codec("NotificationRequest").decode(record.value) for record in self.records]


class FakeGenerations:
    """As the table does it."""

    def __init__(self) -> None:
        self.generation, self.confirmed, self.down = 0, True, False

    async def reserve(self, tenant: str, notification_id: str, above: int) -> int:
        await asyncio.sleep(0)
        if self.confirmed or self.generation <= above:
            self.generation = max(self.generation + 1, above + 1)
        self.confirmed = False
        return self.generation

    async def confirm(self, tenant: str, notification_id: str, generation: int) -> None:
        if self.down:
            raise UnavailableError("PostgreSQL does not answer")
        self.confirmed = True


class World:
    def __init__(self, *states_of_messages: str, whole: str | None = None) -> None:
        facts = [fact(str(n) + A[1:], state) for n, state in enumerate(states_of_messages)]
        if whole is not None:
            facts.append(fact("", whole))
        self.broker, self.generations = FakeBroker(), FakeGenerations()
        self.request: NotificationRequest | None = {
            "notification_id": NID,
            "tenant": "mine",
            "accepted_at": ids.accepted_at(NID),
            "user_id": "u",
            "template_id": "t",
            "correlation_id": "old",
            "lane": "normal",
        }
        self.store = FakeStore(Found(True, tuple(facts)))
        statuses = Statuses(self.store, lambda _: None, lambda: NOW)
        self.control = Control(statuses, self.broker, self.generations, self.find, lambda: NOW)

    def find(self, tenant: str, notification_id: str, lane: str) -> Original | None:
        return Original(self.request, lane) if self.request and tenant == "mine" else None

    def resend(self) -> tuple[str, int]:
        return asyncio.run(self.control.resend("mine", NID, "new", None))


UNSETTLED = sorted(set(states().rank) - states().settled - {"accepted"})


@pytest.mark.parametrize("state", UNSETTLED)
def test_cancellation_of_what_is_in_flight_is_published(state: str) -> None:
    world = World(state) if state not in ("scheduled", "held") else World(whole=state)
    stored, body = asyncio.run(world.control.cancel("mine", NID))
    assert (stored, body["id"], body["status"]) == (True, NID, state)
    (record,) = world.broker.records
    assert (record.topic, record.key) == ("notify.cancellations.v1", NID.encode())
    assert codec("Cancellation").decode(record.value) == {"notification_id": NID, "tenant": "mine", "requested_at": NOW}


@pytest.mark.parametrize("state", sorted(states().settled - {"cancelled"}))
def test_what_is_settled_cannot_be_cancelled(state: str) -> None:
    world = World(state)
    with pytest.raises(RefusedError) as caught:
        asyncio.run(world.control.cancel("mine", NID))
    problem = caught.value
    assert (problem.kind, problem.code, problem.extra) == (
        Refusal.CONFLICT,
        "already_settled",
        {"notification_status": state},
    )
    assert world.broker.records == []


def test_cancelled_notification_is_200_without_another_cancellation() -> None:
    world = World(whole="cancelled")
    assert asyncio.run(world.control.cancel("mine", NID))[0] is False
    assert world.broker.records == []


class Deciding(FakeStore):
    """Somebody decides after so many reads."""

    def __init__(self, before: Found, then: Found, *, after: int) -> None:
        super().__init__(before, after=0)
        self._then, self._changes_after = then, after

    async def read(self, tenant: str, notification_id: UUID) -> Found | None:
        if self.reads == self._changes_after:
            self.found = self._then
        return await super().read(tenant, notification_id)


def deciding(world: World, before: str, then: list[Any], *, after: int = 2) -> None:
    store = Deciding(Found(True, (fact(A, before),)), Found(True, tuple(then)), after=after)
    world.control = Control(
        Statuses(store, lambda _: None, lambda: NOW), world.broker, world.generations, world.find, lambda: NOW
    )


def test_cancel_is_confirmed_by_the_fact_of_whoever_decides() -> None:
    world = World()
    deciding(world, "routed", [fact(A, "routed"), fact(A, "cancelled", "by_caller")])
    stored, body = asyncio.run(world.control.cancel("mine", NID))
    assert (stored, body["status"], len(world.broker.records)) == (True, "cancelled", 1)


@pytest.mark.parametrize("state", ["sent", "bounced", "unknown", "expired"])
def test_cancel_is_409_if_the_notification_settles_first(state: str) -> None:
    world = World()
    deciding(world, "routed", [fact(A, "routed"), fact(A, state)])
    with pytest.raises(RefusedError) as caught:
        asyncio.run(world.control.cancel("mine", NID))
    assert (caught.value.kind, caught.value.extra) == (Refusal.CONFLICT, {"notification_status": state})
    assert len(world.broker.records) == 1


def test_one_of_two_messages_cancelled_is_not_confirmed_before_the_other_has_ended() -> None:
    world = World()
    other = "b" + A[1:]
    deciding(world, "routed", [fact(A, "cancelled", "by_caller"), fact(other, "routed")])
    assert asyncio.run(world.control.cancel("mine", NID))[1]["status"] == "routed"


def test_stored_cancellation_is_202_when_its_outcome_cannot_be_read() -> None:
    world = World("routed")

    class GoesAway(FakeStore):
        async def read(self, tenant: str, notification_id: UUID) -> Found | None:
            self.away = self.reads > 0
            return await super().read(tenant, notification_id)

    store = GoesAway(world.store.found)
    world.control = Control(
        Statuses(store, lambda _: None, lambda: NOW), world.broker, world.generations, world.find, lambda: NOW
    )
    assert asyncio.run(world.control.cancel("mine", NID))[1]["status"] == "routed"


def test_more_waiting_callers_than_allowed_are_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_UNDECIDED", 0)
    world = World("routed")
    assert asyncio.run(world.control.cancel("mine", NID))[0] is True
    assert (world.store.reads, len(world.broker.records)) == (1, 1)


def test_cancelled_in_doubt_is_unknown_because_an_attempt_may_have_been_sent() -> None:
    cancellations: Any = {NID: {"notification_id": NID, "tenant": "mine", "requested_at": NOW}}
    message: Any = {"notification_id": NID, "tenant": "mine", "expires_at": None, "possible_duplicate": True}
    assert recheck(message, SenderViews({}, {}, cancellations), NOW) == ("unknown", "in_doubt")
    message["possible_duplicate"] = False
    assert recheck(message, SenderViews({}, {}, cancellations), NOW) == ("cancelled", "by_caller")
    assert recheck(message, SenderViews({}, {}, cancellations), NOW, repeats=True) == ("unknown", "in_doubt")


def test_cancellation_that_the_broker_does_not_confirm_is_503() -> None:
    world = World("routed")
    world.broker.failures = 1
    with pytest.raises(RefusedError) as caught:
        asyncio.run(world.control.cancel("mine", NID))
    assert caught.value.kind is Refusal.BUSY


def test_resend_is_the_same_request_of_the_next_generation() -> None:
    world = World("sent")
    assert world.resend() == (NID, 1)
    (request,) = world.broker.decoded()
    assert (request["generation"], request["correlation_id"], request["user_id"]) == (1, "new", "u")
    assert world.broker.records[0].key == b"mine:u"
    assert world.resend() == (NID, 2)


def test_two_resends_at_once_share_a_generation() -> None:
    world = World("sent")
    world.broker.takes_s = 0.2

    async def both() -> list[tuple[str, int]]:
        return await asyncio.gather(*(world.control.resend("mine", NID, f"c{n}", None) for n in range(2)))

    assert asyncio.run(both()) == [(NID, 1), (NID, 1)]


def test_resend_that_the_broker_did_not_confirm_keeps_its_generation() -> None:
    world = World("failed")
    world.broker.failures = 1
    with pytest.raises(RefusedError) as caught:
        world.resend()
    assert caught.value.kind is Refusal.BUSY
    assert world.resend() == (NID, 1)


def test_resend_counts_although_its_confirmation_is_lost() -> None:
    world = World("sent")
    world.generations.down = True
    assert world.resend() == (NID, 1)


@pytest.mark.parametrize("state", UNSETTLED)
def test_what_is_on_its_way_is_not_resent(state: str) -> None:
    with pytest.raises(RefusedError) as caught:
        World(state).resend()
    assert (caught.value.kind, caught.value.code) == (Refusal.CONFLICT, "not_settled")


def test_cancelled_and_expired_stay_so() -> None:
    with pytest.raises(RefusedError) as caught:
        World(whole="cancelled").resend()
    assert (caught.value.kind, caught.value.code) == (Refusal.CONFLICT, "cancelled")
    world = World("failed")
    assert world.request is not None
    world.request["expires_at"] = NOW
    with pytest.raises(RefusedError) as caught:
        world.resend()
    assert (caught.value.kind, caught.value.code) == (Refusal.CONFLICT, "expired")
    assert world.broker.records == []


def test_request_beyond_retention_is_404() -> None:
    world = World("sent")
    world.request = None
    with pytest.raises(RefusedError) as caught:
        world.resend()
    assert (caught.value.kind, caught.value.code) == (Refusal.UNKNOWN, "request_gone")


def test_resend_of_a_notification_whose_generations_may_be_forgotten_is_404() -> None:
    world = World("sent")
    world.control._clock = lambda: ids.accepted_at(NID) + RESENDABLE_MS + 1
    with pytest.raises(RefusedError) as caught:
        world.resend()
    assert (caught.value.kind, caught.value.code) == (Refusal.UNKNOWN, "request_gone")
    assert world.broker.records == []


def test_resend_of_a_request_that_fills_its_record_to_the_last_byte_is_409() -> None:
    world = World("sent")
    assert world.request is not None
    world.request["data"] = b"x" * (MAX_VALUE_BYTES - 100)
    with pytest.raises(RefusedError) as caught:
        world.resend()
    assert (caught.value.kind, caught.value.code) == (Refusal.CONFLICT, "not_publishable")


def test_lane_that_does_not_exist_is_not_searched() -> None:
    world = World("sent")
    world.store.found = Found(True, ({**fact(A, "sent"), "lane": "made-up"},))
    assert world.resend() == (NID, 1)
