"""The token bucket of an API key, and the answer to a call that comes too soon."""

from __future__ import annotations

from typing import cast

import pytest

from api.rate_limit import MAX_BUCKETS, RateLimiter
from api.requests import Authenticator
from producers.reference.keys import Keys
from runtime.http.problems import Problem
from tests.unit.test_http_ingest import FakeKeys, World

AUTHORIZED = b"Bearer key-of-shop"


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_burst_is_taken_and_then_the_rate_holds() -> None:
    clock = Time()
    limiter = RateLimiter(10, monotonic=clock)
    assert [limiter.take("k") for _ in range(20)] == [0.0] * 20
    assert limiter.take("k") == pytest.approx(0.1)
    clock.now += 0.1
    assert limiter.take("k") == 0
    assert limiter.take("k") > 0
    clock.now += 3600
    assert [limiter.take("k") == 0 for _ in range(21)] == [True] * 20 + [False]


def test_keys_do_not_share_a_bucket() -> None:
    limiter = RateLimiter(0.5, monotonic=Time())
    assert limiter.take("a") == 0
    assert limiter.take("a") == pytest.approx(2)
    assert limiter.take("b") == 0


def test_charge_is_a_debt_that_ends() -> None:
    clock = Time()
    limiter = RateLimiter(10, monotonic=clock)
    limiter.charge("k", 1_000_000)
    assert limiter.take("k") == pytest.approx(10.1)
    clock.now += 10.2
    assert limiter.take("k") == 0


def test_buckets_are_bounded() -> None:
    limiter = RateLimiter(1, monotonic=Time())
    for number in range(MAX_BUCKETS + 10):
        limiter.take(str(number))
    assert len(limiter._buckets) == MAX_BUCKETS


async def test_call_too_soon_is_429_with_the_time_to_wait() -> None:
    authenticator = Authenticator(cast(Keys, FakeKeys()), RateLimiter(0.5, monotonic=Time()))
    await authenticator.caller(AUTHORIZED)
    with pytest.raises(Problem) as caught:
        await authenticator.caller(AUTHORIZED)
    assert (caught.value.status, caught.value.code, caught.value.headers["Retry-After"]) == (429, "rate_limited", "2")
    with pytest.raises(Problem) as caught:
        await authenticator.caller(b"Bearer nobody")
    assert caught.value.status == 401


async def test_items_of_a_bulk_count_and_the_body_of_a_limited_call_is_not_read() -> None:
    world = World()
    world.ingest._authenticator = Authenticator(cast(Keys, FakeKeys()), RateLimiter(10, monotonic=Time()))
    item = {"to": {"user_id": "u"}, "content": {"text": "x"}}
    assert (await world.post({"notifications": [item] * 20}, path="/v1/notifications/bulk")).status == 202
    limited = await world.post(None, raw=[b"not json"])
    assert (limited.status, limited.body["code"]) == (429, "rate_limited")
    assert int(limited.headers["retry-after"]) >= 1
