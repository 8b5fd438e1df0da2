"""Work in another process: answered, refused, ended by its CPU time; the one that asks is never held."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.workers import MAX_OF_ONE_OWNER, BusyError, OverBudgetError, WorkerError, Workers

HERE = "tests.unit.test_workers"


def double(argument: Any) -> Any:
    return argument * 2


def who(_: Any) -> int:
    return os.getpid()


def spin(_: Any) -> None:
    while True:
        pass


def die(_: Any) -> None:
    os._exit(3)


def fail(_: Any) -> None:
    raise KeyError("x")


def nap(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(cpu_s=0.3)
    yield made
    made.close()


async def test_calls_are_answered_by_one_process_that_stays(workers: Workers) -> None:
    assert await workers.run(f"{HERE}:double", {"a": ["é\0", 1.5, None]}["a"]) == ["é\0", 1.5, None] * 2
    pids = {await workers.run(f"{HERE}:who", None) for _ in range(3)}
    assert len(pids) == 1
    assert pids != {os.getpid()}


async def test_call_that_takes_too_much_cpu_time_is_ended_and_the_next_one_is_answered(workers: Workers) -> None:
    with pytest.raises(OverBudgetError):
        await workers.run(f"{HERE}:spin", None)
    assert await workers.run(f"{HERE}:double", 2) == 4


async def test_time_that_is_not_spent_on_the_cpu_is_not_counted(workers: Workers) -> None:
    await workers.run(f"{HERE}:nap", 0.6)


@pytest.mark.parametrize("function", ["die", "fail"])
async def test_process_that_ends_or_fails_is_an_error_and_the_next_call_is_answered(
    workers: Workers, function: str
) -> None:
    with pytest.raises(WorkerError):
        await workers.run(f"{HERE}:{function}", None)
    assert await workers.run(f"{HERE}:double", 2) == 4


async def test_one_owner_does_not_take_all_places(workers: Workers) -> None:
    calls = [asyncio.ensure_future(workers.run(f"{HERE}:nap", 0.2, owner="greedy")) for _ in range(MAX_OF_ONE_OWNER)]
    await asyncio.sleep(0)
    with pytest.raises(BusyError):
        await workers.run(f"{HERE}:double", 1, owner="greedy")
    assert await workers.run(f"{HERE}:double", 1, owner="other") == 2
    await asyncio.gather(*calls)
    assert await workers.run(f"{HERE}:double", 1, owner="greedy") == 2


async def test_close_ends_the_process() -> None:
    workers = Workers()
    pid = await workers.run(f"{HERE}:who", None)
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
