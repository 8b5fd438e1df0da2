"""The README's quickstart, run word for word in an empty directory."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from console.local import stack

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.kafka, pytest.mark.postgres, pytest.mark.clickhouse,
    pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="the quickstart is for bash and curl"),
]  # fmt: skip


def blocks() -> list[str]:
    """The ```sh blocks of the README, in order."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


def values(output: str) -> list[dict[str, object]]:
    """Every JSON object on a line of its own."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_the_quickstart_does_what_the_readme_says(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = "set -euo pipefail\n" + "\n".join(blocks())
    try:
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    finally:
        stack.down(tmp_path / ".heliograph")
    assert done.returncode == 0, done.stdout + done.stderr
    user, template, accepted, status, mailbox = values(done.stdout)
    assert user["id"] == "zoe"
    assert template["version"] == 1
    assert template["variables"] == ["name", "order"]
    assert accepted["status"] == "accepted"
    assert status["id"] == accepted["id"]
    assert status["status"] == "sent"
    assert [mail["subject"] for mail in mailbox["entries"]] == ["A1 ist unterwegs"]  # type: ignore[attr-defined]
