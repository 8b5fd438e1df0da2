"""The brake against floods of unusable records: when it holds, when it does not, and that it stays held."""

from __future__ import annotations

import pytest

from runtime.dead_letters import DeadLetterBrake
from runtime.errors import DeadLetterFlood
from runtime.metrics import DEAD_LETTER_BRAKE
from runtime.settings import DeadLetterSettings


class Hands:
    """A clock that goes on when told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def brake(hands: Hands, *, ratio: float = 0.5, count: int = 100) -> DeadLetterBrake:
    return DeadLetterBrake(DeadLetterSettings(max_ratio=ratio, min_count=count, window_s=60), "test", monotonic=hands)


def shown() -> float:
    return float(DEAD_LETTER_BRAKE.labels("test")._value.get())


def test_a_flood_is_refused_and_stays_refused() -> None:
    hands = Hands()
    made = brake(hands)
    made.check(60, 60)  # too few to judge
    assert (made.not_ready(), shown()) == (None, 0.0)
    with pytest.raises(DeadLetterFlood, match=r"100 of the last 100 .*HELIOGRAPH_DEAD_LETTERS__MAX_RATIO=1"):
        made.check(40, 40)
    assert shown() == 1.0
    hands.now += 3_600  # the records that wait are the same
    with pytest.raises(DeadLetterFlood):
        made.check(1, 0)
    assert "100 of the last 100" in (made.not_ready() or "")


def test_exactly_the_ratio_is_no_flood_and_one_more_is() -> None:
    made = brake(Hands())
    made.check(100, 50)
    with pytest.raises(DeadLetterFlood):
        made.check(1, 1)


def test_a_first_batch_may_be_refused_whole() -> None:
    with pytest.raises(DeadLetterFlood):
        brake(Hands()).check(500, 400)


def test_a_good_batch_is_not_refused_for_what_came_before() -> None:
    made = brake(Hands())
    made.check(99, 99)
    made.check(1, 0)
    assert made.not_ready() is None


def test_what_is_older_than_the_window_does_not_count() -> None:
    hands = Hands()
    made = brake(hands)
    made.check(99, 99)
    hands.now += 61
    made.check(99, 99)
    hands.now += 30
    with pytest.raises(DeadLetterFlood, match="149 of the last 149"):
        made.check(50, 50)


def test_good_records_of_the_window_count_against_the_flood() -> None:
    hands = Hands()
    made = brake(hands)
    for _ in range(50):
        made.check(1_000, 10)
        hands.now += 1
    made.check(20_000, 20_000)
    assert made.not_ready() is None


def test_ratio_of_one_never_halts() -> None:
    made = brake(Hands(), ratio=1)
    made.check(100_000, 100_000)
    assert made.not_ready() is None
