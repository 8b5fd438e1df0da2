"""The claim: a number in the metadata of the committed offset; pure.

    committed offset = lo, metadata = "<hi>:<hexmask>"

[lo, hi) is claimed by whoever committed it; bit i of the mask says that offset lo+i is finished. After a takeover an
offset of [lo, hi) that is neither finished nor in the ledger is in doubt; offsets from hi on were never touched.
May import the standard library. What never enters here: Kafka, a message.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_SPAN = 8_000
"""hi − lo: keeps the metadata below Kafka's 4,096 bytes."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a commit says."""

    lo: int
    hi: int
    mask: int = 0

    def in_doubt(self, offset: int) -> bool:
        """Claimed and not known to be finished."""
        return self.lo <= offset < self.hi and not self.finished(offset)

    def finished(self, offset: int) -> bool:
        """Below lo, or marked."""
        return offset < self.lo or (offset < self.hi and bool(self.mask >> (offset - self.lo) & 1))

    @property
    def metadata(self) -> str:
        return f"{self.hi}:{self.mask:x}"


def parse_claim(offset: int, metadata: str) -> Claim:
    """The claim of a committed offset; metadata that is not ours claims nothing."""
    hi_text, separator, mask_text = metadata.partition(":")
    try:
        hi, mask = int(hi_text), int(mask_text, 16)
    except ValueError:
        return Claim(offset, offset)
    if not separator or hi < offset or mask < 0 or hi - offset > MAX_SPAN or mask.bit_length() > hi - offset:
        return Claim(offset, offset)
    return Claim(offset, hi, mask)


class Window:
    """The running claim of one partition."""

    def __init__(self, claim: Claim) -> None:
        self._lo, self._hi, self._mask = claim.lo, claim.hi, claim.mask
        self._committed: Claim | None = None
        self._advance()

    def claim(self, offset: int) -> None:
        """Extend the claim over `offset`; offsets skipped on the way (gaps in the log) count as finished."""
        if offset >= self._hi:
            gap = offset - self._hi
            self._mask |= ((1 << gap) - 1) << (self._hi - self._lo)
            self._hi = offset + 1
            self._advance()

    def finish(self, offset: int) -> None:
        """Mark a claimed offset as recorded."""
        if not self._lo <= offset < self._hi:
            raise ValueError(f"offset {offset} is not claimed in [{self._lo}, {self._hi})")
        self._mask |= 1 << (offset - self._lo)
        self._advance()

    def _advance(self) -> None:
        # The lowest unfinished offset: count the ones at the low end.
        done = (~self._mask & (self._mask + 1)).bit_length() - 1
        done = min(done, self._hi - self._lo)
        self._lo += done
        self._mask >>= done

    def room(self, offset: int) -> bool:
        """Whether `offset` may be claimed without outgrowing the metadata."""
        return offset + 1 - self._lo <= MAX_SPAN

    @property
    def current(self) -> Claim:
        return Claim(self._lo, self._hi, self._mask)

    @property
    def changed(self) -> bool:
        """Whether there is something to commit."""
        return self.current != self._committed

    def committed(self, claim: Claim) -> None:
        """Remember what the group has confirmed."""
        self._committed = claim
