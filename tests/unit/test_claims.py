"""The claim in the committed offset against a trivial model."""

from hypothesis import given
from hypothesis import strategies as st

from senders.claims import MAX_SPAN, Claim, ClaimTracker, parse_claim


def test_metadata_that_is_not_ours_claims_nothing() -> None:
    for metadata in (
        "",
        "x",
        "12",
        "5:zz",
        "3:0",
        "10:-1",
        f"{10 + MAX_SPAN + 1}:0",
        "12:ff",
        "12:1:1",
        "12:0:zz",
        "12:0:8",
    ):
        assert parse_claim(10, metadata) == Claim(10, 10)


def test_claim_survives_its_own_metadata() -> None:
    claim = Claim(100, 110, 0b1010, 0b100100)
    assert parse_claim(100, claim.metadata) == claim
    assert [offset for offset in range(95, 115) if claim.in_doubt(offset)] == [100, 104, 106, 107, 108, 109]
    assert [offset for offset in range(95, 115) if claim.is_waiting(offset)] == [102, 105]


def test_largest_claim_fits_into_kafkas_metadata() -> None:
    every_other = int("a" * (MAX_SPAN // 4), 16)
    assert len(Claim(10**15, 10**15 + MAX_SPAN, every_other, every_other >> 1).metadata) < 4096


_STEP = st.tuples(st.sampled_from(["claim", "pass over", "pass over again", "return", "finish"]), st.integers(0, 40))


@given(st.lists(_STEP, max_size=80), st.integers(0, 5))
def test_tracker_tells_claimed_from_waiting_and_finished(steps: list[tuple[str, int]], start: int) -> None:
    tracker = ClaimTracker(Claim(start, start))
    read, hi = start, start
    claimed: set[int] = set()
    waiting: set[int] = set()
    for step, number in steps:
        if step in ("claim", "pass over"):
            offset = read + number % 3  # gaps happen
            read = offset + 1
            if step == "claim":
                tracker.claim(offset)
                claimed.add(offset)
                hi = offset + 1
            else:
                tracker.mark_waiting(offset)
                waiting.add(offset)
        elif step == "pass over again" and waiting:
            tracker.mark_waiting(sorted(waiting)[number % len(waiting)])
        elif step == "return" and waiting:
            offset = sorted(waiting)[number % len(waiting)]
            tracker.claim(offset)
            waiting.discard(offset)
            claimed.add(offset)
            hi = max(hi, offset + 1)
        elif step == "finish" and claimed:
            offset = sorted(claimed)[number % len(claimed)]
            tracker.finish(offset)
            claimed.discard(offset)
        current = tracker.current
        assert current.hi == hi
        assert {offset for offset in range(start, hi) if current.in_doubt(offset)} == claimed
        below = {offset for offset in waiting if offset < hi}
        assert {offset for offset in range(start, hi) if current.is_waiting(offset)} == below
        assert current.lo == min(claimed | below, default=hi)
        assert parse_claim(current.lo, current.metadata) == current


def test_window_after_takeover_ends_where_its_predecessor_was_done() -> None:
    tracker = ClaimTracker(Claim(10, 14, 0b0110))
    tracker.finish(10)
    assert tracker.current == Claim(13, 14, 0)
    tracker.finish(13)
    assert tracker.current == Claim(14, 14, 0)


def test_what_was_passed_over_before_a_takeover_is_sent_without_doubt() -> None:
    taken = parse_claim(10, Claim(10, 14, 0b0100, 0b0010).metadata)
    assert [taken.in_doubt(offset) for offset in range(10, 14)] == [True, False, False, True]
    tracker = ClaimTracker(taken)
    tracker.mark_waiting(11)
    for offset in (10, 13):
        tracker.finish(offset)
    assert tracker.current == Claim(11, 14, 0b110, 0b001)
    tracker.claim(11)
    tracker.finish(11)
    assert tracker.current == Claim(14, 14)
