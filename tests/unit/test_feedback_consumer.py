"""The feedback consumer has a life of its own: what ends it is told, and it is started again."""

from __future__ import annotations

import asyncio
import time

import pytest

from producers.reference import feedback_consumer
from producers.reference.feedback_consumer import FeedbackConsumer
from runtime.errors import UnavailableError
from runtime.metrics import FEEDBACK_RUNNING
from runtime.settings import Settings


def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.mark.parametrize(
    "error", [KeyError("x"), UnavailableError("PostgreSQL is away"), RecursionError(), OSError(5, "no")]
)
def test_feedback_that_ends_is_told_and_started_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(feedback_consumer, "FIRST_PAUSE_S", 0.05)
    lives: list[float] = []
    pauses: list[float | None] = []
    living = FeedbackConsumer(Settings())
    wait = living._stopping.wait

    def pause(seconds: float | None = None) -> bool:
        pauses.append(seconds)
        return wait(seconds)

    async def process_all() -> None:
        lives.append(time.monotonic())
        if len(lives) < 3:
            raise error
        living._is_up()
        await asyncio.to_thread(wait)

    monkeypatch.setattr(living, "_process_all", process_all)
    monkeypatch.setattr(living._stopping, "wait", pause)
    assert living.trouble() == "starting"
    living.start()
    until(lambda: len(lives) == 1 and living.trouble() != "starting", "its first end is told")
    until(lambda: living.trouble() is None, "it works again")
    assert FEEDBACK_RUNNING._value.get() == 1
    assert pauses == [0.1, 0.2], "the pause grows"
    living.stop(10)
    assert not living._thread.is_alive()
    assert FEEDBACK_RUNNING._value.get() == 0


def test_feedback_that_never_started_is_stopped() -> None:
    FeedbackConsumer(Settings()).stop(1)
