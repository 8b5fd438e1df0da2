"""The README's quickstart, run word for word in a directory of the user's own, behind a proxy that knows nothing of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local import stack

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.skipif(
        not (shutil.which("curl") and shutil.which("bash")), reason="the quickstart is for bash and curl"
    ),
]


def blocks() -> list[str]:
    """The ```sh blocks of the README, in order."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


def values(output: str) -> list[dict[str, object]]:
    """Every JSON object on a line of its own."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def behind_a_proxy() -> dict[str, str]:
    """An environment whose proxy nobody answers at; curl reads the lower-case name alone, and is not ours."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


def test_the_quickstart_does_what_the_readme_says(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("schemas.py", "console.py", "senders.py", "runtime/__init__.py"):  # a project of theirs
        theirs = tmp_path / name
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_text("raise SystemExit('not ours')\n")
    script = "set -euo pipefail\n" + "\n".join(blocks())
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=behind_a_proxy(), capture_output=True, text=True, timeout=240
        )
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
    assert "email sent via simulator-smtp" in done.stdout
    assert re.search(r"^postgres +postgresql://heliograph@127", done.stdout, re.MULTILINE)
    assert not re.search(r"^api_key", done.stdout, re.MULTILINE)
    assert [mail["subject"] for mail in mailbox["entries"]] == ["A1 ist unterwegs"]  # type: ignore[attr-defined]
