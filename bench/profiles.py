"""Where a process's time goes: the first lines of a py-spy profile, by function, own time first.

May import the standard library. Never: a profile while something is measured: py-spy stops what it looks at.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

LINES = 10
_RATE = 200
_FRAME = re.compile(r"^(?P<function>.+) \((?P<file>[^()]+):\d+\)$")


def of_process(pid: int, work: Callable[[], object]) -> list[str]:
    """While it does the work; a line that says why where there is none."""
    py_spy = shutil.which("py-spy")
    if py_spy is None:
        return ["no profile: py-spy is not installed"]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "profile"
        command = [py_spy, "record", "--gil", "--pid", str(pid), "--rate", str(_RATE), "--format", "raw"]
        recording = subprocess.Popen(
            [*command, "--duration", "600", "--output", path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        work()
        recording.send_signal(signal.SIGINT)
        _, errors = recording.communicate(timeout=60)
        if not path.exists():
            return [f"no profile: {(errors.strip().splitlines() or ['py-spy gave no reason'])[-1]}"]
        return top(path.read_text())


def top(raw: str, lines: int = LINES) -> list[str]:
    """Of stacks `frame;frame;frame count`: the functions with most time of their own, as shares of all samples."""
    own: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack and count.isdigit():
            own[_shortened(stack.rpartition(";")[2])] += int(count)
    total = own.total()
    return [f"{count / total:5.1%}  {where}" for where, count in own.most_common(lines)]


def _shortened(frame: str) -> str:
    """Function and file without line and folders above the package."""
    found = _FRAME.match(frame)
    if not found:
        return frame
    return f"{found['function']} ({'/'.join(Path(found['file']).parts[-3:])})"
