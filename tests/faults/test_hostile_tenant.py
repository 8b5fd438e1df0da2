"""The short form of the hostile tenant; the long one is `python -m tests.faults.hostile_tenant`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.hostile_tenant import Plan, Sends, run

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.faults,
    pytest.mark.timeout(600),
]


def test_honest_tenant_does_not_feel_a_hostile_one(tmp_path: Path) -> None:
    """Without the figures of time: other tests run beside this one."""
    plan = Plan(seed=20_262, hostile=2_000, honest=600, quiet=100)
    assert run(plan, tmp_path / "stack", timed=False) == [], plan


def test_lane_is_reported_stuck_while_records_wait_and_nothing_is_sent() -> None:
    seen = Sends(
        {"idle": [(0, 100), (5_000, 5_100)], "held": [(0, 100), (200, 3_200), (300, 3_300)], "slow": [(0, 2_000)]}
    )
    assert seen.longest_stand_s() == {"idle": 0.1, "held": 3.0, "slow": 2.0}
