"""A case of the harness: what is compared, in rounds that take turns, and what makes a round wrong.

    Case        opens a Trial in a World
    Trial       contenders over one set of data; the one that is named `baseline` is what the others are divided by
    Contender   measured once a round: figures, and counts that must agree

May import bench. Never: a measurement of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from bench.e2e import WrongRunError
from bench.figures import Spread, by_figure, ratios
from bench.world import World
from runtime.errors import HeliographError

log = logging.getLogger("bench")


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one round: what went in, what came out, what is settled. All three are the same in a right run."""

    accepted: int
    sent: int
    settled: int

    def check(self, who: str) -> None:
        """Raises WrongRunError."""
        if not self.accepted == self.sent == self.settled:
            raise WrongRunError(f"{who}: accepted {self.accepted}, sent {self.sent}, settled {self.settled}")


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one contender. Names of figures carry their units: per_second, cpu_us, p99_ms, rss_mib."""

    figures: Mapping[str, float]
    counts: Counts


@dataclass(frozen=True, slots=True)
class Contender:
    """Ours in one of its forms, or a rival."""

    name: str
    measure: Callable[[], Measured]
    against: str | None = None
    """The contender it is divided by, where that is not the trial's baseline."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run. `shrink` divides every size, for trying a case out."""

    full: bool = False
    repeat: int = 3
    shrink: int = 1
    rivals: bool = True

    def size(self, short: int, full: int) -> int:
        """Of a set of data."""
        return max(1, (full if self.full else short) // self.shrink)


@dataclass(slots=True)
class Trial:
    """A case that is ready to be measured."""

    data: str
    """SHA-256 of the set of data, shortened."""
    contenders: Sequence[Contender]
    compare: str
    """The figure that ratios are made of."""
    baseline: str | None = None
    """The contender that the others are divided by; None where there is nothing to divide by."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Rivals that could not take part, and why."""
    notes: list[str] = field(default_factory=list)
    profiles: Mapping[str, Callable[[], list[str]]] = field(default_factory=dict)
    """By stage: the first lines of where its time goes."""
    repeat: int | None = None
    """Rounds, where a round is too long for as many as the scale says."""


Needs = Literal["nothing", "broker", "stack"]


@dataclass(frozen=True, slots=True)
class Case:
    """One question, with a number as its answer."""

    name: str
    what: str
    needs: Needs
    open: Callable[[Scale, World], AbstractContextManager[Trial]]


@dataclass(slots=True)
class Outcome:
    """What a case gave."""

    case: Case
    data: str = ""
    compare: str = ""
    baseline: str | None = None
    against: dict[str, str] = field(default_factory=dict)
    """Contenders that have a baseline of their own, and which."""
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    profiles: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None

    def figures(self, contender: str) -> dict[str, list[float]]:
        """Its values by figure, a value a round."""
        return by_figure([measured.figures for measured in self.rounds[contender]])

    def base(self, contender: str) -> str | None:
        """What it is divided by."""
        return self.against.get(contender, self.baseline)

    def ratio(self, contender: str) -> Spread | None:
        """Of the figure that is compared, to the baseline's of the same round; None for a baseline itself."""
        base = self.base(contender)
        if base is None or contender == base:
            return None
        found = ratios(self.figures(contender).get(self.compare, []), self.figures(base).get(self.compare, []))
        return Spread.of(found) if found else None


def run(case: Case, scale: Scale, world: World) -> Outcome:
    """Every round of every contender, taking turns: A B C A B C. A wrong round ends the case with its error, not a figure."""
    outcome = Outcome(case)
    try:
        with case.open(scale, world) as trial:
            outcome.data, outcome.compare, outcome.baseline = trial.data, trial.compare, trial.baseline
            outcome.left_out, outcome.notes = trial.left_out, trial.notes
            outcome.against = {it.name: it.against for it in trial.contenders if it.against is not None}
            outcome.rounds = {contender.name: [] for contender in trial.contenders}
            for turn in range(trial.repeat or scale.repeat):
                for contender in trial.contenders:
                    measured = contender.measure()
                    measured.counts.check(contender.name)
                    outcome.rounds[contender.name].append(measured)
                    log.info("%s, round %d, %s: %s", case.name, turn + 1, contender.name, dict(measured.figures))
            outcome.profiles = {stage: profile() for stage, profile in trial.profiles.items()}
    except (WrongRunError, HeliographError) as exc:
        outcome.error = f"{type(exc).__name__}: {exc}"
    return outcome
