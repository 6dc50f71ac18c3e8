"""Ejection, probes, slow start, pauses, retries: who is out, for how long, and how it comes back."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.config import Balancing
from shoal.errors import ConfigError
from shoal.serving.balancing.balancer import Balancer
from shoal.serving.balancing.circuit import Circuit, OutcomeWindow
from shoal.serving.balancing.inquiry import Ending, Inquiry, block_names
from shoal.serving.balancing.limits import BalancerLimits
from shoal.serving.balancing.replica_state import Flight, Traits
from shoal.serving.balancing.reports import Move
from shoal.serving.balancing.retry_budget import RetryBudget

ANY = Inquiry(tokens=10)


def balancer(replicas: int, **limits: Any) -> Balancer[int]:
    to = Balancer[int](Balancing.ROUND_ROBIN, Random(0), BalancerLimits(**limits))
    for number in range(replicas):
        to.add(number, 0.0)
    return to


def end(to: Balancer[int], replica: int, ending: Ending, now: float = 0.0, times: int = 1) -> None:
    for _ in range(times):
        to.ended(to.began(replica, ANY, now), ending, now)


def chosen(to: Balancer[int], now: float, times: int = 80) -> set[int | None]:
    """Those that are chosen, one after the other. All requests end well."""
    seen = set[int | None]()
    for _ in range(times):
        replica = to.choose(ANY, now)
        seen.add(replica)
        if replica is not None:
            end(to, replica, Ending.CANCELLED, now)
    return seen


def test_failures_in_a_row_eject():
    to = balancer(3)
    end(to, 1, Ending.FAILED, times=4)
    end(to, 1, Ending.SERVED)
    end(to, 1, Ending.FAILED, times=4)
    assert to.circuit(1) is Circuit.CLOSED
    end(to, 1, Ending.FAILED)
    assert to.circuit(1) is Circuit.OPEN
    assert chosen(to, 0.0) == {0, 2}
    (change,) = to.changes()
    assert (change.replica, change.move, change.until) == (1, Move.EJECTED, 10.0)
    assert change.reason == "5 requests in a row failed"
    assert to.changes() == []


def test_a_failure_rate_ejects():
    to = balancer(3, failures=100)
    for _ in range(4):
        end(to, 1, Ending.SERVED)
        end(to, 1, Ending.FAILED)
    assert to.circuit(1) is Circuit.CLOSED, "eight requests are not enough"
    end(to, 1, Ending.SERVED)
    end(to, 1, Ending.FAILED)
    assert to.circuit(1) is Circuit.OPEN
    assert to.changes()[0].reason == "5 of its last 10 requests failed"


def test_failures_before_the_window_do_not_count():
    to = balancer(3, failures=100)
    end(to, 1, Ending.FAILED, now=0.0, times=9)
    end(to, 1, Ending.FAILED, now=31.0, times=9)
    assert to.circuit(1) is Circuit.CLOSED


@pytest.mark.parametrize("ending", [Ending.CANCELLED, Ending.BUSY, Ending.SERVED])
def test_only_its_own_failures_eject(ending: Ending):
    to = balancer(3)
    end(to, 1, ending, times=50)
    assert to.circuit(1) is Circuit.CLOSED


def test_it_comes_back_by_probes_and_the_time_doubles():
    to = balancer(3, slow_start=0.0)
    now = 0.0
    for seconds in (10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0):
        end(to, 1, Ending.FAILED, now, times=5 if now == 0.0 else 1)
        assert chosen(to, now + seconds - 0.1) == {0, 2}
        assert 1 in chosen(to, now + seconds)
        assert to.circuit(1) is Circuit.HALF_OPEN
        now += seconds
    end(to, 1, Ending.SERVED, now)
    assert to.circuit(1) is Circuit.HALF_OPEN
    end(to, 1, Ending.SERVED, now)
    assert to.circuit(1) is Circuit.CLOSED
    assert [change.move for change in to.changes()][-2:] == [Move.PROBED, Move.BACK]
    end(to, 1, Ending.FAILED, now + 2999.0, times=5)
    assert to.changes()[-1].until == now + 2999.0 + 300.0
    assert 1 in chosen(to, now + 4000.0)
    end(to, 1, Ending.SERVED, now + 4000.0, times=2)
    end(to, 1, Ending.FAILED, now + 7001.0, times=5)
    assert to.changes()[-1].until == now + 7011.0, "it was well for long enough"


def test_probes_are_bounded():
    to = balancer(2, probes=2)
    end(to, 1, Ending.FAILED, times=5)
    flights: list[Flight[int]] = []
    for _ in range(80):
        replica = to.choose(ANY, 10.0)
        assert replica is not None
        flights.append(to.began(replica, ANY, 10.0))
    assert to.in_flight(1) == 2
    probe = next(flight for flight in flights if flight.state.id == 1)
    to.ended(probe, Ending.CANCELLED, 10.0)
    assert 1 in chosen(to, 10.0)


def test_a_draining_replica_does_not_come_back_with_its_last_probe():
    to = balancer(2)
    end(to, 1, Ending.FAILED, times=5)
    assert 1 in chosen(to, 10.0)
    probe = to.began(1, ANY, 10.0)
    to.drain(1, 10.0)
    to.ended(probe, Ending.SERVED, 10.0)
    assert chosen(to, 100.0) == {0}


def test_a_draining_replica_is_not_judged():
    """Else it would count as ejected, and another one would stay."""
    to = balancer(5)
    end(to, 4, Ending.FAILED, times=5)
    assert 4 in chosen(to, 10.0, 200)
    probe = to.began(4, ANY, 10.0)
    to.drain(4, 10.0)
    to.ended(probe, Ending.FAILED, 10.0)
    for number in (0, 1):
        end(to, number, Ending.FAILED, 10.0, times=5)
    assert (to.circuit(0), to.circuit(1)) == (Circuit.OPEN, Circuit.OPEN)


def test_a_request_from_before_the_ejection_does_not_count_as_a_probe():
    to = balancer(2)
    before = [to.began(1, ANY, 0.0) for _ in range(9)]
    end(to, 1, Ending.FAILED, times=5)
    assert 1 in chosen(to, 10.0)
    for flight in before[:4]:
        to.ended(flight, Ending.SERVED, 10.0)
    assert to.circuit(1) is Circuit.HALF_OPEN
    for flight in before[4:]:
        to.ended(flight, Ending.FAILED, 10.0)
    assert to.circuit(1) is Circuit.HALF_OPEN


@given(st.integers(1, 12), st.floats(0, 1), st.permutations(range(12)))
def test_no_more_are_ejected_than_may_be(replicas: int, share: float, order: list[int]):
    to = balancer(replicas, ejected_share=share)
    for number in order:
        if number < replicas:
            end(to, number, Ending.FAILED, times=20)
    out = sum(to.circuit(number) is not Circuit.CLOSED for number in range(replicas))
    assert out == int(share * replicas)
    assert (chosen(to, 0.0) != {None}) == (out < replicas)


def test_one_that_is_sick_and_may_not_be_ejected_gets_little():
    to = balancer(3)
    end(to, 0, Ending.FAILED, times=5)
    end(to, 1, Ending.FAILED, times=5)
    assert (to.circuit(0), to.circuit(1)) == (Circuit.OPEN, Circuit.CLOSED)
    counts = [to.choose(ANY, 0.0)]
    for _ in range(109):
        assert counts[-1] is not None
        end(to, counts[-1], Ending.CANCELLED)
        counts.append(to.choose(ANY, 0.0))
    assert 8 <= counts.count(1) <= 12


def test_when_others_leave_the_ejected_come_back():
    to = balancer(4)
    end(to, 0, Ending.FAILED, now=0.0, times=5)
    end(to, 1, Ending.FAILED, now=1.0, times=5)
    to.remove(2, 2.0)
    assert (to.circuit(0), to.circuit(1)) == (Circuit.CLOSED, Circuit.OPEN)
    to.drain(3, 2.0)
    assert (to.circuit(0), to.circuit(1)) == (Circuit.CLOSED, Circuit.OPEN)
    to.remove(0, 2.0)
    assert to.circuit(1) is Circuit.CLOSED
    assert to.choose(ANY, 2.0) == 1
    assert to.changes()[-1].reason == "too few other replicas are left"


def test_a_busy_replica_is_left_alone_for_a_while():
    to = balancer(2)
    to.ended(to.began(0, ANY, 0.0), Ending.BUSY, 0.0)
    to.ended(to.began(1, ANY, 0.0), Ending.BUSY, 0.0, pause=7.0)
    assert to.choose(ANY, 0.5) is None
    why = to.why()
    assert why is not None and why.busy == 2 and why.wait == pytest.approx(0.5)
    assert chosen(to, 1.0) == {0}
    assert chosen(to, 7.0) == {0, 1}


def test_why_names_every_reason():
    to = balancer(0)
    assert to.why() is None
    assert to.choose(ANY, 0.0) is None
    assert str(to.why()) == "there are no replicas"
    for number in range(5):
        to.add(number, 0.0)
    to.drain(0, 0.0)
    end(to, 1, Ending.FAILED, times=5)
    end(to, 3, Ending.FAILED, times=5)
    assert 3 in chosen(to, 10.0)
    for _ in range(2):
        to.began(3, ANY, 10.0)
    end(to, 1, Ending.FAILED, 10.0)
    end(to, 2, Ending.BUSY, 10.0)
    assert to.choose(ANY, 10.0, {4}) is None
    why = to.why()
    assert why is not None
    assert str(why) == "none of 5 replicas can take it: 1 tried, 1 draining, 1 ejected, 1 on probation, 1 busy"
    assert why.wait == 1.0


def test_nobody_starts_slowly_before_the_first_request():
    to = balancer(3)
    assert [to.share(number) for number in range(3)] == [1.0, 1.0, 1.0]


def test_a_new_replica_starts_slowly_and_not_if_it_is_alone():
    to = balancer(1)
    end(to, 0, Ending.SERVED)
    to.add(1, 0.0)
    assert to.share(1) == 0.1
    to.choose(ANY, 10.0)
    assert to.share(1) == 0.5
    to.remove(0, 10.0)
    assert to.share(1) == 1.0


def test_one_that_comes_back_starts_slowly():
    to = balancer(3)
    end(to, 0, Ending.FAILED, times=5)
    to.choose(ANY, 10.0)
    end(to, 0, Ending.SERVED, 10.0, times=2)
    assert (to.circuit(0), to.share(0)) == (Circuit.CLOSED, 0.1)
    to.choose(ANY, 30.0)
    assert to.share(0) == 1.0


def test_what_was_measured_before_an_ejection_counts_no_longer():
    to = Balancer[int](Balancing.LEAST_LATENCY, Random(0), BalancerLimits(slow_start=0.0))
    for number in range(3):
        to.add(number, 0.0)
        flight = to.began(number, ANY, 0.0)
        to.ended(flight, Ending.SERVED, 9.0 if number == 0 else 0.01)
    end(to, 0, Ending.FAILED, 9.0, times=5)
    to.choose(ANY, 19.0)
    end(to, 0, Ending.SERVED, 19.0, times=2)
    assert (to.circuit(0), to.choose(ANY, 19.0)) == (Circuit.CLOSED, 0)


@given(st.lists(st.floats(0, 3), max_size=40))
def test_a_share_never_falls_while_it_rises(waits: list[float]):
    to = balancer(2)
    end(to, 0, Ending.SERVED)
    to.add(2, 0.0)
    now, before = 0.0, to.share(2)
    for wait in waits:
        now += wait
        to.choose(ANY, now)
        assert before <= to.share(2) == pytest.approx(min(max(0.1, now / 20), 1.0), abs=0.051)
        before = to.share(2)


def test_retries_are_bounded_by_the_share_of_requests():
    to = balancer(3, retry_share=0.2, retries_at_rest=0.0)
    assert to.choose(ANY, 0.0, {0}) is None
    why = to.why()
    assert why is not None and why.retries_spent
    assert str(why) == "too many requests failed on their first replica to send this one to another (of 3 replicas: 1 tried)"
    for _ in range(100):
        to.choose(ANY, 0.0)
    assert sum(to.choose(ANY, 0.0, {0}) is not None for _ in range(100)) == 20


@given(st.floats(0, 1), st.floats(0, 5), st.lists(st.floats(0, 2), max_size=100))
def test_a_budget_allows_no_more_than_both_rates(share: float, rate: float, waits: list[float]):
    budget, now, taken = RetryBudget(share, rate), 0.0, 0
    for wait in waits:
        now += wait
        budget.request()
        taken += budget.take(now) + budget.take(now)
    assert taken <= share * len(waits) + rate * now + (max(10 * rate, 1) if rate else 0) + 1e-6


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 20)), max_size=60))
def test_a_window_counts_what_is_in_it(outcomes: list[tuple[bool, float]]):
    window, now, times = OutcomeWindow(10.0), 0.0, list[tuple[bool, float]]()
    for served, wait in outcomes:
        now += wait
        window.add(served, now)
        times.append((served, now))
    served, failed = window.counts(now)
    for count, kind in ((served, True), (failed, False)):
        within = [at for good, at in times if good is kind]
        assert sum(at > now - 9.0 for at in within) <= count <= sum(at > now - 10.0 - 1e-6 for at in within)


def test_what_becomes_of_a_removed_replica_changes_nothing():
    to = balancer(2)
    flight = to.began(0, ANY, 0.0)
    to.remove(0, 0.0)
    to.add(0, 0.0)
    to.first_token(flight, 1.0)
    to.ended(flight, Ending.FAILED, 1.0)
    assert to.in_flight(0) == 0
    assert len(to) == 2 and 0 in to and 7 not in to


def test_failures_of_a_removed_replica_are_not_counted_as_an_ejection():
    to = balancer(3)
    flights = [to.began(0, ANY, 0.0) for _ in range(5)]
    to.remove(0, 0.0)
    for flight in flights:
        to.ended(flight, Ending.FAILED, 0.0)
    end(to, 1, Ending.FAILED, times=5)
    assert to.circuit(1) is Circuit.OPEN
    assert chosen(to, 100.0) == {1, 2}


def test_a_replica_is_added_once():
    with pytest.raises(ValueError, match="there already"):
        balancer(1).add(0, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("failures", 0), ("failure_rate", 1.5), ("ejected_share", -0.1), ("window", float("nan")), ("longest_ejection", 1.0)],
)
def test_limits_are_checked(name: str, value: float):
    with pytest.raises(ConfigError, match=f"{name} must be at least"):
        BalancerLimits(**{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bad", [{"speed": 0.0}, {"speed": float("inf")}, {"distance": -1.0}, {"slots": 0}, {"blocks": -1}])
def test_traits_are_checked(bad: dict[str, Any]):
    with pytest.raises(ConfigError):
        Traits(**bad)


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_names_of_blocks_agree_as_far_as_the_tokens_do(one: list[int], other: list[int]):
    names, others = block_names(one, 4), block_names(other, 4)
    assert len(names) == max(len(one) - 1, 0) // 4
    for at, (name, second) in enumerate(zip(names, others, strict=False)):
        assert (name == second) == (one[: 4 * at + 4] == other[: 4 * at + 4])
