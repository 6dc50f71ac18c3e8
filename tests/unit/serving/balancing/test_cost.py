"""What a request costs does not grow with the number of replicas."""

from __future__ import annotations

import sys
from collections import deque
from random import Random
from types import FrameType
from typing import Any

import pytest

from shoal.config import Balancing
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.inquiry import Ending, Inquiry
from shoal.serving.balancing.replica_state import Flight, Traits


def lines(strategy: Balancing, replicas: int, requests: int = 300) -> float:
    """Lines of Python that run per request, every turn of a loop counted."""
    balancer = Balancer[int](strategy, Random(1))
    for number in range(replicas):
        balancer.add(number, 0.0, Traits(speed=1.0 + number % 3, distance=number % 4, blocks=100))
    chance, flights, now = Random(2), deque[Flight[int]](), 0.0
    count, counted = 0, 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    def one() -> None:
        nonlocal now
        now += 0.01
        session = chance.randrange(replicas)
        blocks = ("shared", *(f"{session} {at}" for at in range(chance.randrange(5))))
        inquiry = Inquiry(len(blocks) * 32 + 1, blocks, str(session))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            replica = balancer.choose(inquiry, now)
            assert replica is not None
            flights.append(balancer.began(replica, inquiry, now))
            if len(flights) > 2 * replicas:
                flight = flights.popleft()
                balancer.first_token(flight, now)
                balancer.ended(flight, Ending.SERVED, now)
        finally:
            sys.settrace(before)

    for number in range(4 * replicas + requests):
        if number == 4 * replicas:
            counted = count
        one()
    return (count - counted) / requests


@pytest.mark.parametrize("strategy", Balancing)
def test_a_request_costs_as_much_among_a_thousand_as_among_ten(strategy: Balancing):
    assert lines(strategy, 1000) < 2 * lines(strategy, 10)
