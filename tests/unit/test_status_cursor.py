"""Cursors and windows of the list, without a store."""

from __future__ import annotations

import itertools
from uuid import UUID, uuid4

import pytest

from api.notifications.listing import cursor_of, read_cursor
from runtime.http.problems import Problem
from tracking.listing import WINDOWS_H, windows

NOW_S = 1_767_225_600


def test_cursor_leads_back_to_its_id() -> None:
    last = uuid4()
    assert read_cursor(cursor_of(last)) == last


@pytest.mark.parametrize("text", ["x", "?", "AAAA", "ü", "A" * 23, str(UUID(int=1)), "=" * 22])
def test_text_that_is_no_cursor_is_400(text: str) -> None:
    with pytest.raises(Problem) as caught:
        read_cursor(text)
    assert (caught.value.status, caught.value.code) == (400, "invalid_cursor")


@pytest.mark.parametrize("until", [2**32 - 3_600, NOW_S, NOW_S - 10_000_000, 7_200, 0])
def test_windows_cover_everything_once(until: int) -> None:
    found = windows(until, NOW_S)
    assert found[0][1] == until
    assert found[-1][0] == 0
    for (since, _), (_, below) in itertools.pairwise(found):
        assert below == since - 3_600
    assert len(found) <= len(WINDOWS_H) + 1
