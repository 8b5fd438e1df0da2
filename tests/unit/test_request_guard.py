"""The guard below all retry logic: a bounded number of provider requests for one message, whatever goes wrong above."""

from __future__ import annotations

from senders.outcomes import MAX_ATTEMPTS
from senders.stage import RequestGuard
from tests.unit.test_outcomes import message


def test_seventh_request_is_refused_even_when_no_outcome_is_ever_written() -> None:
    guard = RequestGuard(max_retries=5)
    assert [guard.allows(message()) for _ in range(600)].count(True) == 6


def test_what_the_record_says_of_itself_is_enough_to_refuse_after_a_restart() -> None:
    assert not RequestGuard(5).allows(message(retries=6))
    assert not RequestGuard(5).allows(message(attempt=MAX_ATTEMPTS + 1))


def test_throttled_answers_use_up_nothing() -> None:
    guard = RequestGuard(max_retries=0)
    for _ in range(10):
        assert guard.allows(message())
        guard.was_throttled(message())
    assert guard.allows(message())
    assert not guard.allows(message())


def test_replay_counts_anew_and_once() -> None:
    guard = RequestGuard(max_retries=0)
    assert [guard.allows(message(replay=replay)) for replay in (None, None, "r1", "r1", "r2")] == [
        True, False, True, False, True,
    ]  # fmt: skip
