"""The claim: numbers in the metadata of the committed offset; pure.

    committed offset = lo, metadata = "<hi>:<finished>" or "<hi>:<finished>:<waiting>", both masks in hex

[lo, hi) was read by the process that committed it. Bit i of `finished` says that offset lo+i is recorded, bit i of `waiting`
that it waits unsent, because its account or its recipient had no capacity. Every other offset of [lo, hi) is claimed: after a
takeover, it is in doubt unless it is finished or in the ledger. Offsets from hi on were never touched.
May import the standard library. Never: Kafka, a message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MAX_SPAN = 8_000
"""hi − lo: keeps the metadata below Kafka's 4,096 bytes."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a commit says."""

    lo: int
    hi: int
    mask: int = 0
    waiting: int = 0

    def in_doubt(self, offset: int) -> bool:
        """Claimed, and not known to be finished."""
        return self.lo <= offset < self.hi and not self.finished(offset) and not self.is_waiting(offset)

    def finished(self, offset: int) -> bool:
        """Below lo, or marked."""
        return offset < self.lo or (offset < self.hi and bool(self.mask >> (offset - self.lo) & 1))

    def is_waiting(self, offset: int) -> bool:
        """Read and left for later: certainly not sent."""
        return self.lo <= offset < self.hi and bool(self.waiting >> (offset - self.lo) & 1)

    @property
    def metadata(self) -> str:
        waiting = f":{self.waiting:x}" if self.waiting else ""
        return f"{self.hi}:{self.mask:x}{waiting}"


def parse_claim(offset: int, metadata: str) -> Claim:
    """The claim of a committed offset; metadata that is not ours claims nothing."""
    hi_text, _, masks = metadata.partition(":")
    mask_text, separator, waiting_text = masks.partition(":")
    try:
        hi = int(hi_text)
        mask = int(mask_text, 16)
        waiting = int(waiting_text, 16) if separator else 0
    except ValueError:
        return Claim(offset, offset)
    span = hi - offset
    usable = 0 <= span <= MAX_SPAN and mask >= 0 and waiting >= 0 and max(mask, waiting).bit_length() <= span
    if not usable or mask & waiting:
        return Claim(offset, offset)
    return Claim(offset, hi, mask, waiting)


class ClaimTracker:
    """The running claim of one partition. Offsets are claimed or marked waiting in rising order, then finished in any."""

    def __init__(self, claim: Claim) -> None:
        self._lo = claim.lo
        self._hi = claim.hi
        self._mask = claim.mask
        self._waiting = claim.waiting
        self._beyond: deque[int] = deque()
        """Passed over at or above hi, rising: nothing has to be said of them until a later offset is claimed."""
        self._committed: Claim | None = None
        self._advance()

    def mark_waiting(self, offset: int) -> None:
        """Leave a record unsent for now. One that was left before may be left again."""
        if offset >= self._hi and (not self._beyond or offset > self._beyond[-1]):
            self._beyond.append(offset)

    def claim(self, offset: int) -> None:
        """Claim an offset; offsets between it and hi that are not waiting are gaps in the log, and so finished."""
        if offset < self._hi:
            self._waiting &= ~(1 << (offset - self._lo))
            return
        between = 0
        while self._beyond and self._beyond[0] <= offset:
            if (waiting := self._beyond.popleft()) < offset:
                between |= 1 << (waiting - self._lo)
        gap = ((1 << (offset - self._hi)) - 1) << (self._hi - self._lo)
        self._waiting |= between
        self._mask |= gap & ~between
        self._hi = offset + 1
        self._advance()

    def finish(self, offset: int) -> None:
        """Mark a claimed offset as recorded."""
        if not self._lo <= offset < self._hi:
            raise ValueError(f"offset {offset} is not claimed in [{self._lo}, {self._hi})")
        self._mask |= 1 << (offset - self._lo)
        self._waiting &= ~(1 << (offset - self._lo))
        self._advance()

    def _advance(self) -> None:
        # The lowest unfinished offset: count the ones at the low end.
        done = (~self._mask & (self._mask + 1)).bit_length() - 1
        done = min(done, self._hi - self._lo)
        self._lo += done
        self._mask >>= done
        self._waiting >>= done

    def has_capacity(self, offset: int) -> bool:
        """Whether `offset` may be claimed without outgrowing the metadata."""
        return offset + 1 - self._lo <= MAX_SPAN

    @property
    def current(self) -> Claim:
        return Claim(self._lo, self._hi, self._mask, self._waiting)

    @property
    def changed(self) -> bool:
        """Whether there is something to commit."""
        return self.current != self._committed

    def committed(self, claim: Claim) -> None:
        """Remember what the group has confirmed."""
        self._committed = claim
