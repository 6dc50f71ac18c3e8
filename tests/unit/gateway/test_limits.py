"""How much a key may ask: the bucket against its definition, and what a limiter says."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RateLimited
from shoal.gateway.auth.key import KeyId, KeyLimits
from shoal.gateway.auth.limits import Allowance, Bucket, LocalLimiter

ALICE, BOB = KeyId("alice"), KeyId("bob")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def enter(limiter: LocalLimiter, limits: KeyLimits, key: KeyId = ALICE) -> Allowance:
    return asyncio.run(limiter.enter(key, limits))


def refused(limiter: LocalLimiter, limits: KeyLimits, key: KeyId = ALICE) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        enter(limiter, limits, key)
    return caught.value


# The bucket


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=30))
def test_what_is_spent_never_exceeds_a_minute_s_worth_and_what_has_flowed_in(limit: int, asks: list[tuple[float, float]]) -> None:
    now, spent, bucket = 0.0, 0.0, Bucket(limit, 0.0)
    for pause, amount in asks:
        now += pause
        if not bucket.wait(now, amount):
            bucket.spend(now, amount)
            spent += amount
        assert spent <= limit + now * limit / 60 + 1e-6 * limit


@given(st.integers(1, 1000), st.floats(0, 5000), st.floats(0, 1))
def test_after_the_wait_it_holds_what_was_waited_for(limit: int, spent: float, part: float) -> None:
    bucket = Bucket(limit, 0.0)
    bucket.spend(0.0, spent)
    wait = bucket.wait(0.0, part * limit)
    if wait > 1e-3:
        assert bucket.wait(wait * 0.5, part * limit) > 0
    assert bucket.wait(wait * (1 + 1e-9) + 1e-9, part * limit) < 1e-6


def test_a_bucket_that_went_below_nothing_says_when_it_is_full_again() -> None:
    bucket = Bucket(60, 0.0)
    bucket.spend(0.0, 90)
    budget = bucket.budget(0.0)
    assert (budget.limit, budget.remaining, budget.reset) == (60, 0, 90.0)


def test_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = Bucket(60, 10.0)
    bucket.spend(10.0, 60)
    assert bucket.budget(5.0).remaining == 0


# The limiter


def test_without_limits_everything_goes() -> None:
    limiter = LocalLimiter()
    assert [enter(limiter, KeyLimits()) for _ in range(100)] == [Allowance()] * 100


def test_requests_are_counted_by_the_minute() -> None:
    clock = Clock()
    limiter = LocalLimiter(clock)
    left = [enter(limiter, KeyLimits(requests=3)).requests for _ in range(3)]
    assert [budget.remaining for budget in left if budget] == [2, 1, 0]
    error = refused(limiter, KeyLimits(requests=3))
    assert (error.what, error.wait) == ("requests", 20.0)
    clock.now += 20
    enter(limiter, KeyLimits(requests=3))


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    limiter = LocalLimiter(clock)
    enter(limiter, KeyLimits(requests=1))
    for _ in range(50):
        refused(limiter, KeyLimits(requests=1))
    clock.now += 60
    enter(limiter, KeyLimits(requests=1))


def test_tokens_are_paid_for_when_they_are_known() -> None:
    clock = Clock()
    limiter, limits = LocalLimiter(clock), KeyLimits(tokens=60)
    enter(limiter, limits)
    limiter.spend(ALICE, 100)
    error = refused(limiter, limits)
    assert (error.what, error.wait) == ("tokens", 41.0)
    clock.now += 41
    allowance = enter(limiter, limits)
    assert allowance.tokens is not None and allowance.tokens.remaining == 1


def test_requests_at_once_are_counted_until_they_leave() -> None:
    limiter, limits = LocalLimiter(), KeyLimits(concurrency=2)
    enter(limiter, limits)
    enter(limiter, limits)
    assert "2 requests" in str(refused(limiter, limits))
    limiter.leave(ALICE)
    enter(limiter, limits)


def test_one_key_s_requests_are_not_another_s() -> None:
    limiter, limits = LocalLimiter(), KeyLimits(requests=1, concurrency=1)
    enter(limiter, limits)
    refused(limiter, limits)
    enter(limiter, limits, BOB)


def test_a_limit_that_is_changed_counts_from_then_on() -> None:
    limiter = LocalLimiter(Clock())
    enter(limiter, KeyLimits(requests=2))
    allowance = enter(limiter, KeyLimits(requests=10))
    assert allowance.requests is not None and (allowance.requests.limit, allowance.requests.remaining) == (10, 8)
    assert enter(limiter, KeyLimits()) == Allowance()
