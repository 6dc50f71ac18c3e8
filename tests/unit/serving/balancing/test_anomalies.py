"""Replicas that are out of line are named, and others are not."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from shoal.config import Balancing
from shoal.serving.balancing.anomalies import FailingReplica, SlowReplica
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.inquiry import Ending, Inquiry
from shoal.serving.balancing.limits import BalancerLimits


def served(first: list[float], token: list[float], requests: int = 8) -> Balancer[int]:
    """A balancer whose replicas took so many seconds to their first tokens, and for each further one."""
    to = Balancer[int](Balancing.ROUND_ROBIN, Random(0))
    for number in range(len(first)):
        to.add(number, 0.0)
    for _ in range(requests):
        for number, (seconds, each) in enumerate(zip(first, token, strict=True)):
            flight = to.began(number, Inquiry(), 0.0)
            to.first_token(flight, seconds)
            to.ended(flight, Ending.SERVED, seconds + 10 * each, tokens=11)
    return to


def test_a_slow_first_token_is_named_with_its_reason():
    (found,) = served([0.1, 0.4, 0.1, 0.12], [0.02] * 4).anomalies(1.0)
    assert isinstance(found, SlowReplica)
    assert (found.replica, found.what) == (1, "first token")
    assert found.reason == "its first token takes 400 ms, on the median replica 110 ms"
    assert found.deviations > 3.5


def test_slow_tokens_are_named():
    (found,) = served([0.1] * 4, [0.02, 0.02, 0.05, 0.021]).anomalies(1.0)
    assert isinstance(found, SlowReplica) and (found.replica, found.what) == (2, "token")


def test_of_two_replicas_none_is_out_of_line():
    assert served([0.1, 5.0], [0.02, 0.9]).anomalies(1.0) == []


def test_a_few_times_say_nothing():
    assert served([0.1, 5.0, 0.1], [0.02] * 3, requests=4).anomalies(1.0) == []


def test_times_that_are_long_ago_say_nothing():
    assert served([0.1, 5.0, 0.1], [0.02] * 3).anomalies(400.0) == []


def test_where_all_differ_none_is_out_of_line():
    assert served([0.1, 0.2, 0.3, 0.4, 0.5], [0.01, 0.02, 0.03, 0.04, 0.05]).anomalies(1.0) == []


@given(st.lists(st.floats(0.09, 0.11), min_size=3, max_size=9), st.integers(0, 8))
def test_only_the_slow_one_is_named(times: list[float], which: int):
    which %= len(times)
    assert served(times, times).anomalies(2.0) == []
    slower = [seconds * (3.0 if number == which else 1.0) for number, seconds in enumerate(times)]
    assert [(found.replica, found.__class__) for found in served(slower, times).anomalies(2.0)] == [(which, SlowReplica)]


def failed(failures: list[int], requests: int) -> list[SlowReplica[int] | FailingReplica[int]]:
    to = Balancer[int](Balancing.ROUND_ROBIN, Random(0), BalancerLimits(ejected_share=0.0))
    for number in range(len(failures)):
        to.add(number, 0.0)
        for request in range(requests):
            ending = Ending.FAILED if request < failures[number] else Ending.SERVED
            to.ended(to.began(number, Inquiry(), 0.0), ending, 0.1)
    return to.anomalies(1.0)


def test_an_error_rate_out_of_line_is_named_with_its_reason():
    (found,) = failed([0, 0, 6, 1], 40)
    assert isinstance(found, FailingReplica)
    assert (found.replica, found.failed, found.requests) == (2, 6, 40)
    assert found.reason == "6 of its last 40 requests failed, on the median replica 1.2%"


def test_an_error_rate_that_all_have_is_nobodys_anomaly():
    assert failed([10, 12, 9, 14], 40) == []


def test_two_failures_are_nobodys_anomaly():
    assert failed([0, 2, 0], 10) == []
