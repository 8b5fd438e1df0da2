"""Retry-After grows with an outage, and is small again after it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.http.outages import LONGEST_S, Outages


class Now:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_outage_that_lasts_asks_for_more_until_it_is_over() -> None:
    now = Now()
    outages = Outages(now)
    asked = []
    for now.seconds in (100.0, 105.0, 120.0, 150.0, 200.0, 250.0, 300.0, 350.0, 1_000.0):
        asked.append(outages.retry_after_s("store_unavailable"))
    assert asked == [1, 1, 2, 5, 10, 15, 20, 25, 1]  # the last came after a long quiet
    assert outages.retry_after_s("kafka_unavailable") == 1
    now.seconds = 1_050.0
    assert outages.retry_after_s("store_unavailable") == 5
    outages.over("store_unavailable")
    assert outages.retry_after_s("store_unavailable") == 1


@given(st.lists(st.floats(0, 500), max_size=30))
def test_asked_for_is_always_between_one_second_and_the_longest(gaps: list[float]) -> None:
    now = Now()
    outages = Outages(now)
    for gap in gaps:
        now.seconds += gap
        assert 1 <= outages.retry_after_s("x") <= LONGEST_S
