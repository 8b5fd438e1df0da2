"""The worker's own decisions between a dispatch record and its facts, over days of a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.dead_letters import is_cut
from runtime.errors import SettingsError
from runtime.retry import MAX_DELAY_S, MAX_RETRY_AFTER_S
from runtime.settings import BreakerSettings, SenderSettings
from schemas.codec import codec
from schemas.events import LANES, ChannelMessage
from schemas.topics import DEAD_LETTERS, MAX_VALUE_BYTES, STATUS, TIMERS, dispatch_topic, ledger_topic
from senders.breaker import LONGEST_REQUEST_S, PROBES, SLACK_S
from senders.consumers import sender_group
from senders.outcomes import MAX_ATTEMPTS
from senders.read_ahead import SLICE
from senders.recheck import SenderViews
from senders.worker import SAVE_POSITIONS_S
from tests.support.made import message as plain_message
from tests.support.workers import START_S, World
from vendors.sender import ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

BREAKER = BreakerSettings(failures=3, reset_s=30, give_up_s=3_600)
AWAY = Retry(ErrorClass.TRANSIENT, "connection refused")
MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0


def made(**fields: Any) -> ChannelMessage:
    ids = {"message_id": str(uuid4()), "notification_id": str(uuid4())}
    return plain_message(**{**ids, "address": f"{ids['message_id']}@example.org", **fields})


class Provider:
    """Takes messages while it is `up`; None: it answers nothing yet."""

    def __init__(self, up: bool | None = True) -> None:
        self.up = up
        self.sent: set[str] = set()

    def __call__(self, message: ChannelMessage) -> SendResult | None:
        if self.up is None:
            return None
        if not self.up:
            return AWAY
        self.sent.add(message["message_id"])
        return Sent("1")


def no_account_failures(world: World) -> list[dict[str, Any]]:
    return [status for status in world.statuses("failed") if status["detail"].startswith("no account works")]


def broken(provider: Provider, breaker: BreakerSettings = BREAKER) -> World:
    """A world whose account has just been opened, by messages that are no longer there."""
    world = World(provider, breaker=breaker)
    provider.up = False
    for _ in range(3):
        world.send(made())
    world.settle(2)
    world.timers.clear()
    return world


# -- an account that comes back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away_s", [61 * MINUTE, 5 * HOUR, 3 * DAY])
def test_after_an_outage_the_first_message_is_a_probe_and_everything_parked_goes_out(away_s: float) -> None:
    provider = Provider()
    world = broken(provider)
    parked = [made() for _ in range(50)]
    for message in parked:
        world.send(message)
    world.settle()
    assert len(world.admission.parked) == 50, "nothing is asked of an account that is open"
    before = len(world.requests)
    world.now += away_s
    provider.up = None
    world.settle()
    assert len(world.requests) - before == PROBES, "half-open it is probed, and the rest waits"
    assert len(world.admission.parked) == 50 - PROBES
    provider.up = True
    world.settle()
    assert provider.sent == {message["message_id"] for message in parked}
    assert not world.statuses("failed")


def test_bad_minute_and_an_idle_hour_fail_nothing() -> None:
    provider = Provider()
    world = broken(provider)
    world.now += 2 * HOUR
    for hour in range(3):  # one message an hour: each of these probes fails, and waiting goes on after each
        world.send(made())
        while world.timers:
            world.next_timer()
        world.now += HOUR
        assert not no_account_failures(world), f"after {hour + 1} hours of which nobody knows anything"
    provider.up = True
    world.now += MINUTE
    world.send(made())
    world.settle()
    assert len(provider.sent) == 4
    assert not world.statuses("failed")


def test_account_that_fails_without_a_break_is_given_up_by_those_that_waited_as_long() -> None:
    provider = Provider()
    world = broken(provider, BreakerSettings(failures=3, reset_s=30, give_up_s=600))
    early = [made() for _ in range(200)]
    for message in early:
        world.send(message)
    while world.now < START_S + 8 * MINUTE:
        world.turn(5)
    late = [made() for _ in range(5)]
    for message in late:
        world.send(message)
    while world.now < START_S + 11 * MINUTE:
        world.turn(5)
    ended = {status["message_id"] for status in no_account_failures(world)}
    assert len(ended) > 100, "who has waited for ten minutes does not wait any longer"
    assert {status["reason"] for status in no_account_failures(world)} == {"provider_account"}
    assert ended <= {message["message_id"] for message in early}
    waiting = {entry.message["message_id"] for entry in world.admission.parked}
    assert {message["message_id"] for message in late} <= waiting, "who came three minutes ago does"
    provider.up = True
    for _ in range(40):
        world.turn(1)
    assert {message["message_id"] for message in late} <= provider.sent
    assert not world.admission.parked
    assert not provider.sent & {status["message_id"] for status in world.statuses("failed")}


def test_message_whose_probes_fail_waits_no_longer_than_those_behind_it() -> None:
    provider = Provider()
    world = broken(provider, BreakerSettings(failures=3, reset_s=30, give_up_s=600))
    probes = [
        made(routed_at=int(world.now * 1000)) for _ in range(PROBES)
    ]  # alone there: they are the probes every time
    for message in probes:
        world.send(message)
    while world.now < START_S + 9 * MINUTE:
        world.turn(2)
    assert not world.statuses("failed")
    while world.now < START_S + 14 * MINUTE:
        world.turn(2)
    assert {status["message_id"] for status in no_account_failures(world)} == {it["message_id"] for it in probes}
    assert not world.timers
    assert not world.admission.parked


@pytest.mark.parametrize("count", [1, 2, 40, 2_000])
@pytest.mark.parametrize("error", [ErrorClass.TRANSIENT, ErrorClass.ACCOUNT])
def test_outage_of_an_hour_fails_nobody_whose_message_was_used_as_a_probe(count: int, error: ErrorClass) -> None:
    """With the defaults: those that open the breaker are there from the beginning, the rest come within two minutes."""
    provider = Provider()
    world = World(lambda message: provider(message) if provider.up else Retry(error, "503"))
    provider.up = False
    messages = [made() for _ in range(count)]
    coming = iter(messages)
    for message in [next(coming) for _ in range(min(count, 40))]:
        world.send(message)
    while world.now < START_S + 2 * MINUTE:
        for _ in range(count // 20):
            if (message := next(coming, None)) is not None:  # type: ignore[assignment]
                world.send(message)
        world.turn(2)
    for message in coming:
        world.send(message)
    away_s = 61 * MINUTE if count > 40 else 59 * MINUTE
    while world.now < START_S + away_s:
        world.turn(2)
    assert len(world.requests) > 50, "it was probed all the time"
    assert not (world.statuses("failed") if count <= 40 else _impatient(world))
    provider.up = True
    for _ in range(150):
        world.turn(1)
    failed = {status["message_id"] for status in world.statuses("failed")}
    assert provider.sent | failed == {message["message_id"] for message in messages}
    assert not (failed if count <= 40 else _impatient(world))


def _impatient(world: World) -> list[dict[str, Any]]:
    """Who failed for another reason than waiting for give_up_s."""
    return [status for status in world.statuses("failed") if not status["detail"].startswith("no account works")]


def test_probe_that_is_in_doubt_costs_a_retry_and_one_of_a_recipient_too() -> None:
    for result in (InDoubt("timeout"), Retry(ErrorClass.TRANSIENT, "450", account_wide=False)):
        provider = Provider()
        world = broken(provider)
        world.now += 31
        world.answer = lambda _, result=result: result  # type: ignore[misc]
        world.send(made())
        world.settle(3)
        (timer,) = world.timers
        assert codec("ChannelMessage").decode(timer["value"])["retries"] == 1


def test_message_that_is_a_probe_every_time_is_tried_for_an_hour_and_no_more_often_than_any() -> None:
    provider = Provider()
    world = broken(provider)
    world.now += 31
    before = len(world.requests)
    world.send(made())
    while not world.statuses("failed"):
        world.turn(2)
    moments = [at for at, _ in world.requests[before:]]
    assert moments[-1] - moments[0] >= HOUR
    assert len(moments) <= MAX_ATTEMPTS


_STEP = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1.0, 20.0, 31.0, 5 * MINUTE, HOUR, 7 * HOUR, 2 * DAY])),
    st.tuples(st.just("watch"), st.sampled_from([MINUTE, 10 * MINUTE, 70 * MINUTE])),
    st.tuples(st.just("messages"), st.integers(1, 4)),
    st.tuples(st.just("up"), st.booleans()),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(_STEP, max_size=14))
def test_nobody_is_given_up_without_evidence_and_nobody_waits_for_an_account_that_works(
    steps: list[tuple[str, Any]],
) -> None:
    provider = Provider()
    world = World(provider, breaker=BREAKER)
    came: dict[str, float] = {}
    failures: list[float] = []

    def turn(after_s: float) -> None:
        before = len(world.requests)
        known = len(no_account_failures(world))
        world.turn(after_s)
        if not provider.up:
            failures.extend(at for at, _ in world.requests[before:])
        for status in no_account_failures(world)[known:]:
            assert world.now - came[status["message_id"]] >= BREAKER.give_up_s
            assert world.now - failures[-1] <= BREAKER.reset_s, "a probe has just failed"
            since = world.now - BREAKER.give_up_s
            seen = [since, *(at for at in failures if at >= since), world.now]
            gap = max(b - a for a, b in pairwise(seen))
            most = 2 * BREAKER.reset_s + SLACK_S + LONGEST_REQUEST_S + 1
            assert gap <= most, "and every one of the hour before"

    for step, value in steps:
        if step == "wait":
            turn(value)
        elif step == "watch":
            for _ in range(int(value / 10)):
                turn(10.0)
        elif step == "messages":
            for _ in range(value):
                message = made(routed_at=int(world.now * 1000))
                came[message["message_id"]] = world.now
                world.send(message)
            turn(0.05)
        else:
            provider.up = value
    provider.up = True
    for _ in range(60):
        turn(2.0)
    reported = world.statuses("sent", "failed")
    assert {status["message_id"] for status in reported} == set(came), "everybody is told how it ended"
    assert len(reported) == len(came)
    assert {status["message_id"] for status in world.statuses("sent")} == provider.sent
    assert not world.admission.parked


def test_account_that_is_probed_does_not_keep_messages_from_the_next() -> None:
    provider = Provider()
    world = World(provider, breaker=BREAKER, accounts=(("first", None), ("second", None)))
    for _ in range(3):
        world.accounts[0].observe(AWAY, world.now)
    world.now += 31
    asked: list[int] = []

    def first_hangs(message: ChannelMessage) -> SendResult | None:
        return None if len(asked) < PROBES else Sent("1")

    world.answer = first_hangs
    for _ in range(20):
        world.send(made())
    world.settle()
    by_account = [entry.account for entry, _ in world.in_flight]
    assert by_account.count(0) == PROBES
    assert not world.admission.parked, "the others have gone to the account that works"


# -- throttling of one recipient -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, 0.0, 1.0, float("nan"), float("inf"), -1e300, 1e300])
def test_recipient_that_is_throttled_is_tried_for_an_hour_before_it_fails(asked: float | None) -> None:
    world = World(lambda _: Retry(ErrorClass.THROTTLED, "450 4.7.1 greylisted", asked, account_wide=False))
    world.send(made())
    world.settle(3)
    while not world.statuses("failed"):
        world.next_timer()
    moments = [at for at, _ in world.requests]
    assert moments[-1] - moments[0] >= HOUR
    assert len(moments) <= MAX_ATTEMPTS
    pauses = [after - before for before, after in pairwise(moments)]
    assert min(pauses[6:]) >= MAX_DELAY_S, "by then it comes back once a minute"
    hour = asked is not None and asked >= MAX_RETRY_AFTER_S
    assert max(pauses) <= (MAX_RETRY_AFTER_S if hour else MAX_DELAY_S) * 1.1 + 1


def test_throttled_message_that_failed_may_be_replayed_and_gets_as_many_attempts_anew() -> None:
    provider = Provider()
    world = World(lambda _: Retry(ErrorClass.THROTTLED, "429", account_wide=False))
    message = made(attempt=MAX_ATTEMPTS)
    world.send(message)
    world.settle()
    assert world.states() == {"failed": 1}
    world.send({**message, "attempt": 1, "replay": str(uuid4())})
    world.settle()
    assert world.states() == {"failed": 1, "retrying": 1}
    world.answer = provider
    world.next_timer()
    assert world.states() == {"failed": 1, "retrying": 1, "sent": 1}


# -- doubt ---------------------------------------------------------------------------------------------------------------


def _suppressing(message: ChannelMessage) -> SenderViews:
    class Everybody:
        def get(self, key: str) -> Any:
            return {"expires_at": None}

    return SenderViews(Everybody(), {}, {})


def _opted_out(message: ChannelMessage) -> SenderViews:
    return SenderViews({}, {"t:u": {"channels": {"email": False, "push": False}, "categories": {}}}, {})  # type: ignore[dict-item]


def _cancelled(message: ChannelMessage) -> SenderViews:
    return SenderViews({}, {}, {message["notification_id"]: {"tenant": "t"}})  # type: ignore[dict-item]


REFUSALS: dict[str, tuple[Callable[[ChannelMessage], SenderViews] | None, dict[str, Any], tuple[str, str]]] = {
    "expired": (None, {"expires_at": 1}, ("expired", "past_expiry")),
    "suppressed": (_suppressing, {}, ("suppressed", "suppressed_address")),
    "opted out": (_opted_out, {}, ("skipped", "opted_out")),
    "cancelled": (_cancelled, {}, ("cancelled", "by_caller")),
    "no account": (None, {"platform": "webpush"}, ("rejected", "provider_rejected")),
    "unfit": (None, {"retries": -1}, ("rejected", "provider_rejected")),
}


@pytest.mark.parametrize("doubt", [False, True], ids=["never sent", "in doubt"])
@pytest.mark.parametrize("why", REFUSALS)
def test_message_that_may_have_been_sent_never_ends_as_not_sent(why: str, doubt: bool) -> None:
    """In the sweep of what is parked, and before anything is asked of an account."""
    views, fields, expected = REFUSALS[why]
    message = made(possible_duplicate=doubt, channel="push", **fields)
    world = World(
        Provider(None),
        channel="push",
        accounts=(("fcm", frozenset({"fcm"})),),
        limit=1,
        views=views(message) if views else None,
    )
    world.send(made(channel="push", user_id=None, address="first"))  # keeps the only slot
    world.turn()
    world.send(message)
    world.settle(60)
    (reported,) = [status for status in world.statuses() if status["message_id"] == message["message_id"]]
    assert (reported["state"], reported["reason"]) == (("unknown", "in_doubt") if doubt else expected)


def test_replayed_request_of_a_message_in_doubt_is_flagged() -> None:
    world = World(lambda _: InDoubt("timeout"), sender=SenderSettings(max_retries=0))
    message = made()
    world.send(message)
    world.settle()
    assert [(s["state"], s["possible_duplicate"]) for s in world.statuses()] == [("failed", True)]
    world.answer = Provider()
    # The router renders the request anew: attempt 1, and nothing of what became of it.
    world.send({**message, "replay": str(uuid4())})
    world.settle()
    assert [(s["state"], s["possible_duplicate"]) for s in world.statuses("sent")] == [("sent", True)]
    assert world.requests[-1][1]["possible_duplicate"], "the provider is told as well"


def test_replayed_request_of_a_message_that_was_never_sent_is_not_flagged() -> None:
    world = World(lambda _: AWAY, sender=SenderSettings(max_retries=0))
    message = made()
    world.send(message)
    world.settle()
    world.answer = Provider()
    world.send({**message, "replay": str(uuid4())})
    world.settle()
    assert [(s["state"], s["possible_duplicate"]) for s in world.statuses()] == [("failed", False), ("sent", False)]


# -- records that are too large ------------------------------------------------------------------------------------------


def _sized(total: int, **fields: Any) -> ChannelMessage:
    """A message whose record has so many bytes."""
    message = made(text="", **fields)
    return {**message, "text": "x" * (total - len(codec("ChannelMessage").encode(message)) - 2)}


@pytest.mark.parametrize("short_of_limit", [0, 10, 100, 400, 600, 2_000])
@pytest.mark.parametrize("result", [AWAY, InDoubt("timeout")], ids=["not sent", "in doubt"])
def test_retry_that_no_timer_can_hold_ends_by_itself(short_of_limit: int, result: SendResult) -> None:
    world = World(lambda _: result)
    message = _sized(MAX_VALUE_BYTES - short_of_limit)
    world.send(message, headers=[("ce_id", b"1" * 36)])
    world.send(made())
    world.settle(3)
    reported = [s for s in world.statuses() if s["message_id"] == message["message_id"]]
    (first,) = reported[:1]
    if first["state"] == "failed":
        assert "are allowed" in first["detail"]
        assert len(world.of(DEAD_LETTERS)) == 1
        assert first["possible_duplicate"] is isinstance(result, InDoubt)
    else:
        assert first["state"] == "retrying"
    assert short_of_limit not in (0, 2_000) or first["state"] == ("retrying" if short_of_limit == 2_000 else "failed")
    for fact in world.facts:
        if fact.topic in (TIMERS, STATUS):
            size = len(fact.value or b"") + len(fact.key or b"") + sum(len(n) + len(v) for n, v in fact.headers)
            assert size + 100 <= MAX_VALUE_BYTES, "what the broker takes, with everything that it counts"


def test_failover_of_a_record_that_no_longer_fits_ends_by_itself() -> None:
    world = World(lambda _: AWAY, accounts=(("first", None), ("second" * 10, None)))
    message = _sized(MAX_VALUE_BYTES - 5)
    world.send(message)
    world.settle(3)
    assert world.states() == {"failed": 1}


@pytest.mark.parametrize("why", ["undecodable", "retries exhausted"])
def test_letter_that_kafka_refuses_for_its_size_is_cut_and_ends_no_sender(why: str) -> None:
    world = World(lambda _: AWAY, sender=SenderSettings(max_retries=0))
    world.broker.limit(DEAD_LETTERS, 60_000)
    if why == "undecodable":
        world.put(b"\xff" * 200_000)
    else:
        world.send(made(text="x" * 200_000))
    world.send(made())
    world.settle()
    dead_letters = world.of(DEAD_LETTERS)
    assert len(dead_letters) == 2
    assert [is_cut(dead_letter["detail"]) for dead_letter in dead_letters].count(True) == 1
    assert max(len(dead_letter["value"]) for dead_letter in dead_letters) < 60_000
    assert world.undone() == 0, "and it is done with"


# -- housekeeping and shares ---------------------------------------------------------------------------------------------


def test_housekeeping_skips_its_round_when_the_broker_is_slow() -> None:
    world = World(Provider())
    world.turn()
    world.broker.slow = True
    world.turn(SAVE_POSITIONS_S + 1)
    assert sum(world.ledger.positions().values()) == 0
    world.send(made())
    world.settle()
    assert world.states() == {"sent": 1}
    world.broker.slow = False
    world.turn(SAVE_POSITIONS_S + 1)
    assert sum(world.ledger.positions().values()) == 1


def test_process_that_no_slot_is_left_for_says_so_and_holds_nothing() -> None:
    world = World(Provider(), limit=2, partitions=12, lanes=["critical"])
    for _ in range(11):  # one partition of twelve is left
        world.broker.consumer(sender_group("email")).subscribe([dispatch_topic("email", "critical")])
    with pytest.raises(SettingsError, match="max_in_flight of mail is less than there are email senders"):
        world.turn()
    assert not world.worker._owned


# -- memory --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", LANES)
def test_what_is_read_ahead_is_bounded_in_bytes_and_goes_on_as_it_is_sent(lane: str) -> None:
    budget = 16 << 20
    provider = Provider(None)
    world = World(provider, sender=SenderSettings(read_ahead_mib=16), limit=4_000)
    for n in range(4 * 400):
        world.send(made(lane=lane, text="x" * 60_000), partition=n % 4)
    bound = budget + 4 * max(budget * SLICE, 61_000)
    highest = 0
    for _ in range(200):
        world.turn()
        highest = max(highest, world.worker.buffered_bytes)
    assert budget * 0.2 < highest <= bound, "the budget is used and kept"
    provider.up = True
    for _ in range(600):
        world.turn()
        assert world.worker.buffered_bytes <= bound
    assert world.states() == {"sent": 1_600}
    assert world.worker.buffered_bytes == 0, "what is recorded is let go, to the byte"
    assert world.undone() == 0


def test_lane_whose_messages_wait_keeps_none_of_the_others_from_being_read() -> None:
    """Every other lane's reserve is left, whichever of them is full of what waits for an account."""
    for full in LANES:
        hold = Provider(None)
        world = World(
            hold,
            channel="push",
            accounts=(("fcm", frozenset({"fcm"})), ("apns", frozenset({"apns"}))),
            limit=40,
            sender=SenderSettings(read_ahead_mib=16),
        )
        world.answer = lambda message: None if message["platform"] == "fcm" else Sent("1")
        for n in range(600):
            world.send(made(channel="push", lane=full, platform="fcm", body="x" * 60_000), partition=n % 4)
        world.settle()
        others = [lane for lane in LANES if lane != full]
        for lane in others:
            for n in range(100):
                world.send(made(channel="push", lane=lane, platform="apns", body="x" * 60_000), partition=n % 4)
        world.settle(200)
        assert world.states() == {"sent": 200}, full


def test_ledger_entry_says_of_which_partition_it_is() -> None:
    world = World(lambda _: Rejected(ErrorClass.PERMANENT_MESSAGE, "552"))
    world.send(made(), partition=3)
    world.settle(2)
    assert [fact.partition for fact in world.facts if fact.topic == ledger_topic("email", "normal")] == [3]


# -- a topic whose limit was lowered --------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [AWAY, InDoubt("timeout")], ids=["not sent", "in doubt"])
def test_next_attempt_that_kafka_refuses_for_its_size_fails_its_message_alone(result: SendResult) -> None:
    large, small = made(text="x" * 50_000), made()
    world = World(lambda message: result, breaker=BreakerSettings(failures=100))
    world.broker.limit(TIMERS, 20_000)
    for message in (large, small):
        world.send(message)
    world.settle(3)
    (failed,) = world.statuses("failed")
    assert (failed["message_id"], failed["reason"]) == (large["message_id"], "retries_exhausted")
    assert failed["possible_duplicate"] == isinstance(result, InDoubt)
    assert failed["attempt"] == 2, "one attempt has one outcome"
    assert [letter.topic for letter in world.broker.published if letter.topic == DEAD_LETTERS] == [DEAD_LETTERS]
    assert [status["message_id"] for status in world.statuses("retrying")].count(small["message_id"]) == 1
    assert len(world.requests) == 2, "nobody asks again for what cannot be brought again"
