"""The results of a run: tables for people, JSON for programs.

May import bench and console.commands.output. Never: a measurement.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.case import Outcome
from bench.figures import Spread, number
from console.commands.output import show

DISTURBED = 0.15
"""A spread beyond this share of the median is marked: something else was beside."""


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """A row a contender: every figure with its spread, and the ratio to the baseline. A ~ marks a spread over 15 %."""
    figures = {name: outcome.figures(name) for name in outcome.rounds}
    columns = dict.fromkeys(figure for values in figures.values() for figure in values)
    table = []
    for name, values in figures.items():
        row: dict[str, Any] = {outcome.case.name: name}
        for column in columns:
            row[column] = _cell(Spread.of(values[column])) if values.get(column) else ""
        ratio = outcome.ratio(name)
        if outcome.baseline is not None or outcome.against:
            row[f"ratio of {outcome.compare}"] = number(ratio.median) if ratio else "1"
        counts = outcome.rounds[name][-1].counts if outcome.rounds[name] else None
        row["accepted = sent = settled"] = f"{counts.accepted:,}" if counts else ""
        table.append(row)
    return table


def _cell(spread: Spread) -> str:
    return f"{spread}{' ~' if spread.share > DISTURBED else ''}"


def print_outcome(outcome: Outcome) -> None:
    """One case's tables."""
    say = sys.stdout.write
    say(f"\n{outcome.case.name}: {outcome.case.what} (data {outcome.data or 'none'}, {outcome.seconds:.0f} s)\n")
    show(rows(outcome), as_json=False)
    for name, why in outcome.left_out.items():
        say(f"left out: {name}: {why}\n")
    for note in outcome.notes:
        say(f"{note}\n")
    for stage, lines in outcome.profiles.items():
        say(f"where {stage} spends its time:\n" + "".join(f"  {line}\n" for line in lines))
    if outcome.error is not None:
        say(f"NO FIGURE, the run is wrong: {outcome.error}\n")


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Everything of one case, with the value of every round."""
    contenders = []
    for name in outcome.rounds:
        ratio = outcome.ratio(name)
        contenders.append(
            {
                "name": name,
                "figures": {
                    figure: {**_spread(Spread.of(values)), "rounds": values}
                    for figure, values in outcome.figures(name).items()
                },
                "ratio": {"of": outcome.compare, "to": outcome.base(name), **_spread(ratio)} if ratio else None,
                "counts": [
                    {"accepted": it.counts.accepted, "sent": it.counts.sent, "settled": it.counts.settled}
                    for it in outcome.rounds[name]
                ],
            }
        )
    return {
        "case": outcome.case.name,
        "what": outcome.case.what,
        "data": outcome.data,
        "seconds": round(outcome.seconds, 1),
        "contenders": contenders,
        "left_out": outcome.left_out,
        "notes": outcome.notes,
        "profiles": outcome.profiles,
        "error": outcome.error,
    }


def _spread(spread: Spread) -> dict[str, float]:
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def write(path: Path, machine: Mapping[str, Any], options: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """The file of a run. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "options": options, "cases": [as_json(outcome) for outcome in outcomes]}
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
