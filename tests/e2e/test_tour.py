"""docs/tour.md, block by block on a stack of its own: every block succeeds and prints what the tour shows of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from local import stack
from tests.support import documents

TOUR = Path(__file__).resolve().parents[2] / "docs" / "tour.md"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.timeout(420),
    pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="the tour is for bash and curl"),
]


def test_every_block_of_the_tour_does_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    parts = documents.blocks(TOUR, *documents.RUNNABLE)
    try:
        done = documents.run(documents.script(parts), tmp_path, 400)
    finally:
        stack.down(tmp_path / ".heliograph")
    seen = documents.outputs(done.stdout)
    wrong = []
    for block, output in zip(parts, seen, strict=False):
        missing = documents.unseen(block.shown, output)
        if missing is not None:
            wrong.append(f"line {block.line} shows {missing!r}, but one sees:\n{output}")
    assert not wrong, "\n".join(wrong)
    assert done.returncode == 0, f"the block in line {parts[len(seen) - 1].line} failed:\n{seen[-1]}"
    assert len(seen) == len(parts) > 20


def test_what_is_shown_and_not_seen_is_noticed() -> None:
    output = "a 1\nb 2\nc 3\n"
    assert documents.unseen(("a ...", "c 3"), output) is None
    assert documents.unseen(("c 3", "a ..."), output) == "a ..."
    assert documents.unseen(("b",), output) == "b"
    assert documents.unseen(("...d...",), output) == "...d..."
