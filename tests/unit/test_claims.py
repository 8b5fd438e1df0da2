"""The claim in the committed offset against a trivial model."""

from hypothesis import given
from hypothesis import strategies as st

from senders.claims import MAX_SPAN, Claim, Window, parse_claim


def test_metadata_that_is_not_ours_claims_nothing() -> None:
    for metadata in ("", "x", "12", "5:zz", "3:0", "10:-1", f"{10 + MAX_SPAN + 1}:0", "12:ff"):
        assert parse_claim(10, metadata) == Claim(10, 10)


def test_claim_survives_its_own_metadata() -> None:
    claim = Claim(100, 110, 0b1010)
    assert parse_claim(100, claim.metadata) == claim
    assert [offset for offset in range(95, 115) if claim.in_doubt(offset)] == [100, 102, 104, 105, 106, 107, 108, 109]


def test_largest_claim_fits_into_kafkas_metadata() -> None:
    assert len(Claim(10**15, 10**15 + MAX_SPAN, (1 << MAX_SPAN) - 1).metadata) < 4096


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=80), st.integers(0, 5))
def test_window_is_the_lowest_unfinished_offset_and_what_is_done_above_it(
    steps: list[tuple[bool, int]], start: int
) -> None:
    window = Window(Claim(start, start))
    hi, unfinished = start, set()
    for claiming, number in steps:
        if claiming:
            offset = hi + number % 3  # gaps happen
            window.claim(offset)
            unfinished.add(offset)
            hi = offset + 1
        elif unfinished:
            offset = sorted(unfinished)[number % len(unfinished)]
            window.finish(offset)
            unfinished.discard(offset)
        current = window.current
        assert current.hi == hi
        assert current.lo == min(unfinished, default=hi)
        assert {offset for offset in range(start, hi) if current.in_doubt(offset)} == unfinished
        assert parse_claim(current.lo, current.metadata) == current


def test_window_after_takeover_ends_where_its_predecessor_was_done() -> None:
    window = Window(Claim(10, 14, 0b0110))
    window.finish(10)
    assert window.current == Claim(13, 14, 0)
    window.finish(13)
    assert window.current == Claim(14, 14, 0)
