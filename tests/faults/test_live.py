"""The long form of the resume proof; the short one is in tests/integration/test_live.py, on a stack that runs anyway."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Stack, running
from tests.faults.live import Plan, Told, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.faults,
    pytest.mark.timeout(900),
]
__all__ = ["running"]


def test_two_hundred_watchers_lose_nothing_in_two_minutes_of_kills(running: Stack) -> None:
    assert run(Plan(seed=17), running, Told()) == []
