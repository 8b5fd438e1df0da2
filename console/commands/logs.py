"""`heliograph logs`: what the processes of a local stack wrote, in one order.

May import local, lazily, and output. Never: a log of another machine.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from console.commands.client import Json
from console.commands.output import plain
from console.commands.stack import DEFAULT_STATE_DIR, StateDir
from runtime.errors import UnavailableError

TAIL_BYTES = 1 << 20
"""Read from the end of each file; what was before is in the file."""
LOOK_S = 0.5
LEVELS = ("debug", "info", "warning", "error", "critical")
_KNOWN = ("timestamp", "level", "role", "logger", "event")


class Line(NamedTuple):
    """A line of a log. `at` is '' where it has no time of its own: it belongs to the line before."""

    at: str
    process: str
    level: str
    text: str
    raw: str


def logs(
    processes: Annotated[
        list[str] | None, typer.Argument(metavar="[PROCESS]...", help="sender-email, kafka, ...; all unless given.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="The last so many.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    level: Annotated[str, typer.Option("--level", help=f"This one and worse: {', '.join(LEVELS)}.")] = "info",
    as_json: Json = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Show what the local stack's processes wrote, the last lines of all in the order of their times."""
    if level not in LEVELS:
        raise typer.BadParameter(f"--level {level}: give one of {', '.join(LEVELS)}")
    files = _files(state_dir, processes or [])
    wanted = LEVELS[LEVELS.index(level) :]
    places: dict[Path, int] = {}
    found: list[Line] = []
    for path in files:
        begin = max(0, path.stat().st_size - TAIL_BYTES)
        read_lines, places[path] = read(path, begin)
        found += read_lines[1:] if begin else read_lines  # the first may have begun before
    shown = [line for line in sorted(found, key=lambda it: it.at) if line.level in wanted]
    for line in shown[len(shown) - lines :] if lines < len(shown) else shown:
        _print(line, as_json)
    try:
        while follow:
            time.sleep(LOOK_S)
            for path in files:
                more, places[path] = read(path, places[path])
                for line in more:
                    if line.level in wanted:
                        _print(line, as_json)
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit from None


def read(path: Path, start: int) -> tuple[list[Line], int]:
    """The whole lines from a place of a file on, and the place after them. A file that was emptied is read from its beginning."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        start = start if start <= size else 0
        file.seek(start)
        data = file.read(TAIL_BYTES)
    end = data.rfind(b"\n") + 1
    if not end and len(data) == TAIL_BYTES:
        end = len(data)
    lines: list[Line] = []
    at = ""
    for text in data[:end].decode("utf-8", "replace").splitlines():
        line = parsed(path.stem, text, at)
        at = line.at
        lines.append(line)
    return lines, start + end


def parsed(process: str, text: str, at: str) -> Line:
    """A line of a role is an object (runtime/logs.py); another one is text, of the time of the line before."""
    try:
        event = json.loads(text)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("timestamp"), str):
        return Line(at, process, "info", text, text)
    more = " ".join(f"{name}={_word(value)}" for name, value in event.items() if name not in _KNOWN)
    level = str(event.get("level", "info"))
    said = f"{event.get('event', '')}  {more}".rstrip()
    return Line(event["timestamp"], process, level if level in LEVELS else "info", said, text)


def _word(value: Any) -> str:
    return value if isinstance(value, str) and value and " " not in value else json.dumps(value, ensure_ascii=False)


def _print(line: Line, as_json: bool) -> None:
    if as_json:
        typer.echo(line.raw)
    else:
        typer.echo(f"{line.at[11:23]:<12} {line.process:<16} {line.level:<8} {plain(line.text)}")


def _files(state_dir: Path, processes: Sequence[str]) -> list[Path]:
    """Raises UnavailableError for a process that has none, or where there is none at all."""
    from local.supervisor.state import StateFiles

    there = {path.stem: path for path in sorted(StateFiles(state_dir).log("any").parent.glob("*.log"))}
    if unknown := sorted(set(processes) - there.keys()):
        raise UnavailableError(f"{state_dir} has no log of {', '.join(unknown)}; it has {', '.join(there) or 'none'}")
    if not there:
        raise UnavailableError(f"{state_dir} has no logs: `heliograph up --state-dir {state_dir}` starts a stack")
    return [path for name, path in there.items() if not processes or name in processes]
