"""When to try again, and how long to leave alone what keeps failing; chance and time are arguments."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.membership.holdoff import HoldOff
from shoal.retry import Backoff, Breaker, doubling


@pytest.mark.parametrize(("times", "delay"), [(0, 2), (1, 4), (5, 64), (6, 100), (10_000, 100)])
def test_what_doubles_ends_at_the_most(times: int, delay: float):
    assert doubling(2, times, 100) == delay


# Backoff


@given(st.floats(0.01, 10), st.floats(0.01, 100), st.integers(0, 60), st.integers())
def test_a_delay_lies_in_the_upper_half_of_what_doubles(first: float, most: float, tries: int, seed: int):
    ceiling = min(first * 2.0**tries, most)
    assert ceiling / 2 <= Backoff(first, most, tries).next(Random(seed)) <= ceiling


def test_delays_grow_and_then_do_not():
    backoff, rng = Backoff(1, 64), Random(1)
    delays = [backoff.next(rng) for _ in range(20)]
    assert all(late > early for early, late in zip(delays[:5:2], delays[2:7:2], strict=True))
    assert max(delays) <= 64


def test_peers_do_not_knock_in_step():
    assert len({Backoff(1, 5).next(Random(seed)) for seed in range(10)}) == 10


def test_a_head_that_is_looked_for_all_day_is_still_looked_for():
    """2.0 ** 1024 is an OverflowError: after an hour at five seconds each the node would have died of it."""
    assert 2.5 <= Backoff(0.2, 5, tries=2000).next(Random(0)) <= 5


# Breaker


def test_a_peer_that_fails_now_and_then_is_tried_at_once():
    breaker = Breaker(limit=3, cool=5)
    for _ in range(10):
        breaker.failed(1)
        breaker.failed(1)
        assert breaker.wait(1) == 0
        breaker.succeeded()


def test_a_peer_that_only_fails_is_left_alone_for_a_while():
    breaker = Breaker(limit=3, cool=5)
    for now in (1, 2, 3):
        assert breaker.wait(now) == 0
        breaker.failed(now)
    assert [breaker.wait(now) for now in (3, 7, 8, 99)] == [5, 1, 0, 0]


@pytest.mark.parametrize("well", [True, False])
def test_one_try_decides_after_that(well: bool):
    breaker = Breaker(limit=2, cool=5)
    breaker.failed(0)
    breaker.failed(0)
    if well:
        breaker.succeeded()
        breaker.failed(5)
    else:
        breaker.failed(5)
    assert breaker.wait(5) == (0 if well else 5)


# Hold-off


def held(*losses: float) -> HoldOff:
    holdoff = HoldOff()
    for now in losses:
        holdoff.lost("a", now)
    return holdoff


def test_the_first_loss_is_free():
    assert held(10).until("a") < 10
    assert held().until("a") < 0


def test_each_further_loss_doubles_the_time():
    assert [held(*range(n)).until("a") - (n - 1) for n in range(2, 10)] == [2, 4, 8, 16, 32, 64, 120, 120]


def test_a_loss_long_ago_is_forgiven():
    holdoff = held(0, 1, 2, 400)
    assert (holdoff.losses("a"), holdoff.until("a") < 400) == (1, True)


def test_others_are_not_held_off_for_it():
    assert (held(0, 1, 2).losses("b"), held(0, 1, 2).until("b") < 0) == (0, True)


def test_a_node_that_is_lost_for_days_is_still_only_held_off():
    """2.0 * 2**1100 is an OverflowError, in the head's own loop."""
    assert held(*range(1200)).until("a") == 1199 + 120
