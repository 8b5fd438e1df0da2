"""What is made of measurements: medians with their spread, ratios of the same round, slopes, quantiles.

May import the standard library. Never: a clock, a measurement.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeats, the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there is no value."""
        if not values:
            raise ValueError("a spread needs one value at least")
        return cls(statistics.median(values), min(values), max(values))

    @property
    def share(self) -> float:
        """From least to greatest, as a share of the median; 0 where the median is 0."""
        return (self.high - self.low) / abs(self.median) if self.median else 0.0

    def __str__(self) -> str:
        if self.low == self.high:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


def number(value: float) -> str:
    """As a person reads it, with three digits that count: 1,763; 28.4; 1.84; 0.031."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    decimals = 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{value:.{decimals}f}"


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Each value over the baseline's of the same round: what disturbed both falls out. Rounds without a baseline are left out."""
    return [value / base for value, base in zip(values, baseline, strict=False) if base]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the others do not exceed. Raises ValueError where there is none."""
    if not values:
        raise ValueError("a quantile needs one value at least")
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line through (x, y): y for each x; 0 where the x are all the same. Raises ValueError without points."""
    if not points:
        raise ValueError("a slope needs one point at least")
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope if len(set(xs)) > 1 else 0.0


def by_figure(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Rounds of figures as a list of values per figure, in the order of the first round."""
    names = dict.fromkeys(name for measured in rounds for name in measured)
    return {name: [measured[name] for measured in rounds if name in measured] for name in names}
