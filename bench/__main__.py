"""The harness: `python -m bench [CASE ...] [--full]`.

Runs cases, each of which compares what we do with rivals or says what it costs; prints a table a case and writes everything to a JSON
file. A case whose messages are not all there gives no figure, and the run ends with 1.
May import bench. Never: what a case measures.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from bench.case import Outcome, Scale, run
from bench.cases import CASES
from bench.report import print_outcome, write
from bench.world import World
from console.commands.output import show
from runtime.logs import configure_logs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(names)}; all where none is named")
    parser.add_argument("--full", action="store_true", help="sizes and rounds for figures that are kept: hours")
    parser.add_argument("--repeat", type=int, help="rounds; 3, with --full 5")
    parser.add_argument("--shrink", type=int, default=1, help="divide every size, to try a case out")
    parser.add_argument("--no-rivals", action="store_true", help="ours only: makes no environments")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where everything is written")
    options = parser.parse_args(arguments)
    unknown = set(options.cases) - set(names)
    if unknown:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; the cases are {', '.join(names)}")
    if options.shrink < 1 or (options.repeat is not None and options.repeat < 1):
        parser.error("--repeat and --shrink start at 1")
    _speak()
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "160")  # of a file, too, a table has its width
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with it
    scale = Scale(options.full, options.repeat or (5 if options.full else 3), options.shrink, not options.no_rivals)
    described = machine.describe()
    show([described], as_json=False)
    outcomes: list[Outcome] = []
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    with World(users=scale.size(10_000, 110_000)) as world:
        for case in chosen:
            if case.needs != "stack":
                world.stop()  # a broker has what its case put there and nothing else; a stack is warm for the next
            started = time.monotonic()
            outcome = run(case, scale, world)
            outcome.seconds = time.monotonic() - started
            outcomes.append(outcome)
            print_outcome(outcome)
            write(
                options.json, described, {"full": scale.full, "repeat": scale.repeat, "shrink": scale.shrink}, outcomes
            )
    sys.stdout.write(f"\nall figures: {options.json}\n")
    return any(outcome.error for outcome in outcomes)


def _speak() -> None:
    """Progress of the harness in plain words; of our own code that runs in this process, warnings only."""
    configure_logs("bench", "warning")
    progress, log = logging.StreamHandler(), logging.getLogger("bench")
    progress.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(progress)
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
