"""The short form of a day of receipts; the long one is `python -m tests.faults.receipts`."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]


def test_receipts_of_all_vendors_end_as_the_model_says_while_callbacks_is_killed() -> None:
    command = [sys.executable, "-m", "tests.faults.receipts", "--seed", "7", "--receipts", "3000", "--kills", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
