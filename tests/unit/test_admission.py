"""Accounts, breaker, limits and admission, by their own clock."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.records import ConsumerRecord
from runtime.settings import BreakerSettings
from schemas.events import LANES, ChannelMessage
from senders.accounts import THROTTLES_IN_A_ROW, Account, Accounts
from senders.admission import PER_RECIPIENT, Admission, QueuedMessage
from senders.breaker import PROBES, Breaker
from senders.limits import TokenBucket, part_of
from vendors.sender import Doubt, ErrorClass, InDoubt, Rejected, Retry, SendResult, Sent

TRANSIENT = Retry(ErrorClass.TRANSIENT, "451")
FOREVER = float("inf")
"""A request that began after every success."""


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Provider:
    """Limits of an account; sends nothing."""

    channel, repeatable_s = "push", 0.0
    reconcile_after_s: float | None = None

    def __init__(self, name: str, *, limit: int = 4, rate: float | None = None, platforms: str | None = None) -> None:
        self.name, self.max_in_flight, self.rate_per_second = name, limit, rate
        self.platforms = frozenset([platforms]) if platforms else None

    async def start(self) -> None: ...
    async def send(self, message: ChannelMessage) -> SendResult:
        raise AssertionError("nothing is sent here")

    async def look_up(self, doubt: Doubt) -> SendResult:
        raise AssertionError("nothing is looked up here")

    async def close(self) -> None: ...


def account(name: str, clock: Callable[[], float], failures: int = 3, **fields: Any) -> Account:
    return Account(Provider(name, **fields), BreakerSettings(failures=failures, reset_s=30, give_up_s=600), clock)


def queued(lane: str = "normal", **fields: Any) -> QueuedMessage:
    message: Any = {
        "message_id": str(uuid4()),
        "lane": lane,
        "address": str(uuid4()),
        "platform": None,
        "provider": None,
        "replay": None,
        "possible_duplicate": False,
        **fields,
    }
    return QueuedMessage(("t", 0), ConsumerRecord("t", 0, 0, 0, None, None), message)


@given(st.floats(1, 1000), st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_token_bucket_never_exceeds_its_rate(rate: float, pauses: list[float]) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    taken = 0
    for pause in pauses:
        clock.now += pause
        while bucket.ready():
            bucket.take()
            taken += 1
    burst = max(1, int(0.1 * rate) + 1)
    assert taken <= burst + rate * (clock.now - 1_000.0) + 1


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e-12, 1e300, float("inf")])
def test_token_bucket_counts_at_any_rate(rate: float) -> None:
    bucket = TokenBucket(rate, Clock())
    bucket.set_rate(rate * 1e-3)
    assert bucket.ready()
    bucket.take()


@given(st.none() | st.floats())
def test_pause_that_a_provider_asks_for_is_a_pause_whatever_it_says(asked: float | None) -> None:
    clock = Clock()
    it = account("a", clock)
    for _ in range(20):
        it.observe(Retry(ErrorClass.THROTTLED, "429", asked), FOREVER)
    clock.now += 61
    assert it.is_available


def test_breaker_opens_after_failures_in_a_row_and_closes_by_one_probe() -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=3, reset_s=30, give_up_s=100), clock)

    def state_after(wait_s: float, *results: bool) -> tuple[str, bool]:
        clock.now += wait_s
        for ok in results:
            breaker.record(ok, clock.now)
        return breaker.state, breaker.given_up()

    assert state_after(0, False, False, True, False, False) == ("closed", False)
    assert state_after(0, False) == ("open", False)
    assert state_after(30) == ("half_open", False)
    assert state_after(0, *[False] * PROBES) == ("open", False), "when the probes fail it waits once more"
    assert state_after(29.9) == ("open", False)
    assert state_after(20) == ("half_open", False), "what is being probed is not given up"
    assert state_after(0, *[False] * PROBES) == ("open", False)
    assert state_after(30, *[False] * PROBES) == ("open", True), "it has failed for give_up_s, at every probe"
    assert state_after(5) == ("open", True)
    assert state_after(30) == ("half_open", False)
    assert state_after(0, True) == ("closed", False)


def test_failures_with_an_idle_time_between_them_are_not_one_time_of_failing() -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=3, reset_s=30, give_up_s=100), clock)
    for idle_s in (0, 3_600, 86_400):
        clock.now += idle_s
        for _ in range(3):
            breaker.record(False, clock.now)
        assert (breaker.state, breaker.given_up()) == ("open", False)
    for _ in range(4):
        clock.now += 30
        for _ in range(PROBES):
            breaker.record(False, clock.now)
    assert breaker.given_up()


def test_request_that_was_under_way_while_the_process_stood_still_is_no_hour_of_failing() -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=2, reset_s=30, give_up_s=3_000), clock)
    breaker.record(False, clock.now)
    began = clock.now + 1
    clock.now += 3_600
    breaker.record(False, began)
    assert (breaker.state, breaker.given_up()) == ("open", False)


def test_account_that_nobody_asks_for_any_more_is_not_said_to_be_down() -> None:
    clock = Clock()
    it = account("a", clock, failures=1)
    it.observe(Retry(ErrorClass.TRANSIENT, "503"), FOREVER)
    for waited_s, is_down in ((0, True), (60, True), (10, True), (1, False), (86_400, False)):
        clock.now += waited_s
        assert (it.trouble is not None) is is_down
    it.observe(Retry(ErrorClass.TRANSIENT, "503"), clock.now)
    assert it.trouble is not None
    assert it.trouble.failing_for_s == 0


@given(
    st.integers(1, 200), st.integers(1, 24), st.integers(1, 24), st.integers(1, 12), st.randoms(use_true_random=False)
)
def test_parts_of_an_account_add_up_to_its_limit_whoever_owns_what(
    limit: int, partitions: int, critical: int, processes: int, random: Random
) -> None:
    counts = {"critical": critical, "normal": partitions, "bulk": partitions}
    cells = [(lane, n) for lane, count in counts.items() for n in range(count)]
    owner = {cell: random.randrange(processes) for cell in cells}
    owned = [{cell for cell in cells if owner[cell] == process} for process in range(processes)]
    assert sum(part_of(limit, each, counts) for each in owned) == limit


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("limit", [1, 2, 4, 12, 13, 64, 1_000])
def test_process_has_a_part_where_there_are_as_many_slots_as_processes(limit: int, processes: int) -> None:
    """As the group shares partitions out: the same numbers of every lane, in blocks."""
    counts = dict.fromkeys(LANES, 12)
    block = 12 // processes
    parts = [
        part_of(limit, {(lane, n) for lane in LANES for n in range(p * block, (p + 1) * block)}, counts)
        for p in range(processes)
    ]
    assert sum(parts) == limit
    assert (min(parts) > 0) == (limit >= processes)
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("limit", [3, 4, 10, 12, 64])
def test_process_of_one_lane_has_a_part_too(limit: int) -> None:
    counts = dict.fromkeys(LANES, 12)
    parts = [part_of(limit, {(lane, n) for n in range(12)}, counts) for lane in LANES]
    assert sum(parts) == limit
    assert max(parts) - min(parts) <= 1


def test_share_without_slots_never_exceeds_the_limit() -> None:
    shares = [account("a", Clock(), limit=4) for _ in range(12)]
    for it in shares:
        it.take_share(3 / 36)
    assert sum(it.has_capacity("critical") for it in shares) <= 4


def test_recipients_that_hang_do_not_open_the_breaker_of_an_account_that_serves_others() -> None:
    clock = Clock()
    breaker = Breaker(BreakerSettings(failures=3), clock)
    began = clock.now
    clock.now += 5
    breaker.record(True, clock.now)
    clock.now += 5

    def state_after(failures: int, since: float) -> str:
        for _ in range(failures):
            breaker.record(False, since)
        return breaker.state

    assert state_after(20, began) == "closed"
    assert state_after(3, clock.now) == "open"


@pytest.mark.parametrize(
    ("result", "opens"),
    [
        (TRANSIENT, True),
        (Retry(ErrorClass.ACCOUNT, "535"), True),
        (InDoubt("TimeoutError"), True),
        (Sent("1"), False),
        (Rejected(ErrorClass.PERMANENT_RECIPIENT, "550"), False),
    ],
)
def test_what_opens_an_account_s_breaker(result: SendResult, opens: bool) -> None:
    it = account("a", Clock())
    for _ in range(3):
        it.observe(result, FOREVER)
    assert it.is_available is not opens


def test_throttled_answers_pause_the_account_and_never_open_its_breaker() -> None:
    clock = Clock()
    it = account("a", clock)
    for _ in range(THROTTLES_IN_A_ROW - 1):
        it.observe(Retry(ErrorClass.THROTTLED, "429", 20), FOREVER)
    assert it.is_available, "one throttled recipient is not a throttled account"
    for _ in range(8):
        it.observe(Retry(ErrorClass.THROTTLED, "429", 20), FOREVER)
    assert not it.is_available
    clock.now += 19.9
    assert not it.is_available
    clock.now += 0.2
    assert it.is_available
    it.acquire()
    assert not it.has_capacity("critical"), "it comes back one request at a time"
    it.release()
    it.observe(Sent(), FOREVER)
    it.acquire()
    assert it.has_capacity("critical")


def test_burst_that_is_throttled_counts_once() -> None:
    clock = Clock()
    it = account("a", clock)
    began = clock.now
    clock.now += 1
    for _ in range(50):
        it.observe(Retry(ErrorClass.THROTTLED, "451 4.7.1"), began)
    assert it.is_available


@pytest.mark.parametrize("error", [ErrorClass.THROTTLED, ErrorClass.TRANSIENT])
def test_answers_about_one_recipient_neither_pause_nor_break(error: ErrorClass) -> None:
    it = account("a", Clock())
    for _ in range(20):
        it.observe(Retry(error, "greylisted", 60, account_wide=False), FOREVER)
    assert it.is_available


def test_first_account_that_works_is_used_and_the_next_takes_over_after_a_definite_not_sent() -> None:
    clock = Clock()
    accounts = Accounts([account("a", clock), account("b", clock), account("c", clock)])
    first = accounts.select_account(queued().message)
    assert first and first.account == 0
    assert accounts.next_after(queued().message, 0) == "b"
    assert accounts.next_after(queued().message, 2) is None, "the round is over: a timer"
    for _ in range(3):
        accounts[1].observe(TRANSIENT, FOREVER)
    assert accounts.next_after(queued().message, 0) == "c", "an open breaker is passed by"
    assert accounts.next_after(queued(possible_duplicate=True).message, 0) is None, "never in doubt"


def test_message_in_doubt_waits_for_its_own_account() -> None:
    clock = Clock()
    accounts = Accounts([account("a", clock), account("b", clock)])
    for _ in range(3):
        accounts[0].observe(TRANSIENT, FOREVER)
    plain, doubt = queued(provider="a").message, queued(provider="a", possible_duplicate=True).message
    assert [choice.account for m in (plain, doubt) if (choice := accounts.select_account(m))] == [1, 0]


def test_accounts_are_chosen_by_platform() -> None:
    clock = Clock()
    accounts = Accounts([account("fcm", clock, platforms="fcm"), account("apns", clock, platforms="apns")])
    assert [accounts.accounts_for(queued(platform=p).message) for p in ("fcm", "apns", "webpush", None)] == [
        [0],
        [1],
        [],
        [0],
    ]
    assert accounts.select_account(queued(platform="webpush").message) is None


def test_saturated_account_parks_its_messages_and_lets_the_others_pass() -> None:
    clock = Clock()
    accounts = Accounts([account("fcm", clock, platforms="fcm", limit=2), account("apns", clock, platforms="apns")])
    admission = Admission(accounts, 100)
    stuck = [queued("critical", platform="fcm") for _ in range(5)]
    assert [admission.try_admit(it) for it in stuck] == [True, True, False, False, False]
    assert admission.try_admit(queued("critical", platform="apns"))
    admission.release(stuck[0])
    assert list(admission.admit_parked("critical")) == [stuck[2]], "first come, first sent"
    assert [it in admission.parked for it in stuck] == [False, False, False, True, True]


def test_recipient_that_hangs_keeps_its_slots_and_no_more() -> None:
    admission = Admission(Accounts([account("a", Clock(), limit=100)]), 200)
    same = [queued("critical", address="slow") for _ in range(PER_RECIPIENT + 3)]
    assert sum(admission.try_admit(it) for it in same) == PER_RECIPIENT
    assert admission.try_admit(queued("critical", address="quick"))
    admission.release(same[0])
    assert list(admission.admit_parked("critical")) == [same[PER_RECIPIENT]]


def test_bulk_leaves_room_for_the_other_lanes() -> None:
    admission = Admission(Accounts([account("a", Clock(), limit=8)]), 1_000)
    assert sum(admission.try_admit(queued("bulk")) for _ in range(20)) == 4
    assert sum(admission.try_admit(queued("normal")) for _ in range(20)) == 2
    assert sum(admission.try_admit(queued("critical")) for _ in range(20)) == 2


def test_blast_that_waits_stops_no_lane_above_it() -> None:
    admission = Admission(Accounts([account("a", Clock(), limit=8)]), 1_000)
    offered = 0
    while admission.may_look_ahead("bulk"):
        admission.try_admit(queued("bulk"))
        offered += 1
        assert offered < 30_000, "there is no end to what a lane may park"
    assert admission.may_look_ahead("critical")
    assert admission.try_admit(queued("critical")), "and there is room for it"


@given(
    st.lists(
        st.tuples(st.sampled_from(["try_admit", "admit_parked", "release", "fail", "later"]), st.integers(0, 5)),
        max_size=150,
    )
)
def test_nothing_is_lost_or_sent_twice_whatever_the_order(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    accounts = Accounts([account("a", clock, limit=3, rate=5), account("b", clock, limit=2)])
    admission = Admission(accounts, 6)
    offered: list[QueuedMessage] = []
    started: list[QueuedMessage] = []
    for step, number in steps:
        if step == "try_admit":
            it = queued(["critical", "normal", "bulk"][number % 3], address=f"r{number}")
            if admission.has_capacity(it.message["lane"]):
                offered.append(it)
                if admission.try_admit(it):
                    started.append(it)
        elif step == "admit_parked":
            started += admission.admit_parked(["critical", "normal", "bulk"][number % 3])
        elif step in ("release", "fail") and admission.in_flight:
            it = list(admission.in_flight.values())[number % len(admission.in_flight)]
            accounts[it.account].observe(TRANSIENT if step == "fail" else Sent(), FOREVER)
            admission.release(it)
        elif step == "later":
            clock.now += number * 10
        assert len(admission.in_flight) <= 6
        assert all(accounts[i].in_flight <= limit for i, limit in ((0, 3), (1, 2)))
    assert len({id(it) for it in started}) == len(started)
    assert {id(it) for it in started} | {id(it) for it in admission.parked} == {id(it) for it in offered}
    clock.now += 1_000
    for _ in range(len(offered) * 10):
        for it in list(admission.in_flight.values()):
            accounts[it.account].observe(Sent(), FOREVER)
            admission.release(it)
        for lane in ("critical", "normal", "bulk"):
            started += admission.admit_parked(lane)
        clock.now += 1
    assert {id(it) for it in started} == {id(it) for it in offered}
    assert not admission.parked
