"""The short form of the storm; the long one is `make faults`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.storm import Plan, run

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.clickhouse,
    pytest.mark.faults,
    pytest.mark.timeout(600),
]


def test_a_short_storm_of_kills_zombies_and_every_provider_mode_breaks_no_invariant(tmp_path: Path) -> None:
    plan = Plan(seed=20_261, notifications=800, kills=10, zombies=2, fault_s=2.5)
    assert run(plan, tmp_path / "stack") == [], plan
