"""The guard below all retry logic: a bounded number of provider requests for one message, whatever goes wrong above."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.metrics import REQUEST_GUARD
from senders.outcomes import MAX_ATTEMPTS
from senders.stage import RequestGuard
from tests.support.made import message


def test_seventh_request_is_refused_even_when_no_outcome_is_ever_written() -> None:
    guard = RequestGuard(max_retries=5)
    assert [guard.allows(message()) for _ in range(600)].count(True) == 6


def test_what_the_record_says_of_itself_is_enough_to_refuse_after_a_restart() -> None:
    assert not RequestGuard(5).allows(message(retries=6))
    assert not RequestGuard(5).allows(message(attempt=MAX_ATTEMPTS + 1))


def test_fields_of_another_publishers_record_raise_no_alarm() -> None:
    alarms = REQUEST_GUARD.labels("email")
    before = alarms._value.get()
    guard = RequestGuard(5)
    assert not guard.allows(message(retries=9_000))
    assert not guard.allows(message(attempt=9_000))
    assert alarms._value.get() == before
    assert [guard.allows(message()) for _ in range(7)][-1] is False
    assert alarms._value.get() == before + 1


def test_throttled_answers_use_up_nothing() -> None:
    guard = RequestGuard(max_retries=0)
    for _ in range(10):
        assert guard.allows(message())
        guard.was_throttled(message())
    assert guard.allows(message())
    assert not guard.allows(message())


def test_what_is_in_flight_is_counted_however_many_others_come_meanwhile() -> None:
    guard = RequestGuard(max_retries=1)
    guard.REMEMBERED = 10
    slow = message(message_id="slow")
    assert guard.allows(slow)
    for n in range(50):
        other = message(message_id=str(n))
        assert guard.allows(other)
        guard.ended(other)
    guard.was_throttled(slow)
    guard.ended(slow)
    assert [guard.allows(slow) for _ in range(3)] == [True, True, False]
    assert len(guard._requests) <= 10


@given(st.lists(st.tuples(st.sampled_from(["allows", "throttled", "ended"]), st.integers(0, 8)), max_size=200))
def test_guard_is_total_and_remembers_a_bounded_number(steps: list[tuple[str, int]]) -> None:
    guard = RequestGuard(max_retries=1)
    guard.REMEMBERED = 3
    in_flight: set[int] = set()
    for step, number in steps:
        it = message(message_id=str(number))
        if step == "allows" and number not in in_flight:
            if guard.allows(it):
                in_flight.add(number)
        elif step == "throttled":
            guard.was_throttled(it)
        else:
            guard.ended(it)
            in_flight.discard(number)
        assert len(guard._requests) <= 3


def test_replay_of_what_uncount_to_its_end_may_be_asked_again() -> None:
    assert RequestGuard(5).allows(message(attempt=MAX_ATTEMPTS + 1, replay="r1"))


def test_replay_counts_anew_and_once() -> None:
    guard = RequestGuard(max_retries=0)
    assert [guard.allows(message(replay=replay)) for replay in (None, None, "r1", "r1", "r2")] == [
        True,
        False,
        True,
        False,
        True,
    ]
