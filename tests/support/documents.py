"""Documents that are executed: fenced blocks, the script they make, and whether what they show was seen."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MARK = "=== block"
RUNNABLE = ("sh", "python", "sql")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `shown` are the lines of the ```text block that directly follows it."""

    language: str
    text: str
    line: int
    shown: tuple[str, ...] = ()


def blocks(document: Path, *languages: str) -> list[Block]:
    """The document's blocks in these languages, in order."""
    text = document.read_text("utf-8")
    fences = list(_FENCE.finditer(text))
    found = []
    for number, fence in enumerate(fences):
        after = fences[number + 1] if number + 1 < len(fences) else None
        follows = after and after[1] == "text" and text[fence.end() : after.start()].strip() == ""
        shown = tuple(after[2].splitlines()) if after and follows else ()
        if fence[1] in languages:
            found.append(Block(fence[1], fence[2], text[: fence.start()].count("\n") + 1, shown))
    return found


def script(parts: list[Block]) -> str:
    """One bash script: blocks share its variables; python goes to the environment's interpreter, SQL to `ask`."""
    lines = ["set -euo pipefail"]
    for number, block in enumerate(parts):
        lines.append(f"printf '\\n%s\\n' '{_MARK} {number}'")  # what came before may not end its line
        if block.language == "sh":
            lines.append(block.text)
        else:
            command = ".venv/bin/python -" if block.language == "python" else "ask"
            lines.append(f"{command} <<'END-OF-BLOCK'\n{block.text}END-OF-BLOCK")
    return "\n".join(lines) + "\n"


def run(text: str, directory: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """The script under bash in a directory; stderr goes with stdout, in order."""
    return subprocess.run(
        ["bash", "-c", text],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )


def outputs(output: str) -> list[str]:
    """What each block printed, up to the one that failed."""
    return re.split(rf"^{_MARK} \d+\n", output, flags=re.MULTILINE)[1:]


def unseen(shown: tuple[str, ...], output: str) -> str | None:
    """The first shown line that the output lacks in this order, None when all are there; `...` stands for anything."""
    lines = iter(output.splitlines())
    for wanted in shown:
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("...")) + r"\s*")
        if not any(pattern.fullmatch(line) for line in lines):
            return wanted
    return None
