"""Sequences that are gathered: how long they wait, and for what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.request import RequestId, SequenceId
from shoal.scheduler.dynamic_batching import due, release
from shoal.scheduler.limits import Batching
from shoal.scheduler.sequence import Sequence
from tests.support.toy_stage import Toy, assert_right, limits, request


def held(at: int, came: float) -> Sequence:
    r = request(f"r{at}", [1])
    return Sequence(SequenceId(at), r, 0, None, [*r.prompt], came=came, held=True)


@given(st.lists(st.floats(0, 10), max_size=8), st.integers(1, 8), st.floats(0.01, 5), st.floats(0, 20))
def test_all_are_let_in_when_there_are_enough_or_the_first_has_waited_for_long_enough(
    arrivals: list[float], size: int, delay: float, now: float
) -> None:
    waiting = [held(at, came) for at, came in enumerate(arrivals)]
    batching = Batching(size, delay)
    first = due(waiting, batching)
    release(waiting, batching, now)
    left = [sequence for sequence in waiting if sequence.held]
    assert left in ([], waiting), "some of them were let in, and some were not"
    assert (first is None) == (not arrivals)
    if left:
        assert len(left) < size and first is not None and now < first == min(arrivals) + delay
        release(waiting, batching, first)
        assert not any(sequence.held for sequence in waiting), "it is due, and they wait"
    elif first is not None:
        assert len(arrivals) >= size or now >= first, "they were let in before they had to be"


@dataclass(frozen=True)
class Scenario:
    size: int
    delay: float
    slots: int
    depth: int
    events: list[tuple[float, int]]
    """Seconds to the next, and what it is."""


SCENARIOS = st.integers(1, 6).flatmap(
    lambda slots: st.builds(
        Scenario,
        size=st.integers(1, slots),
        delay=st.floats(0.05, 2),
        slots=st.just(slots),
        depth=st.integers(1, 3),
        events=st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 9)), max_size=60),
    )
)


@settings(max_examples=200)
@given(SCENARIOS)
def test_nobody_waits_longer_than_the_delay_and_whoever_runs_is_not_held_up(scenario: Scenario) -> None:
    toy = Toy(limits(64, slots=scenario.slots, depth=scenario.depth, batching=Batching(scenario.size, scenario.delay)))
    added = 0
    for seconds, what in scenario.events:
        toy.now += seconds
        if what < 4:
            toy.add(request(f"r{added}", [1, 2 + added % 2], 1 + what))
            added += 1
        elif what == 4 and added:
            toy.cancel(f"r{seconds * 1e3 % added:.0f}")
        toy.fill()
        waits = [s for s in toy.scheduler.slots.waiting if s.held]
        assert len(waits) < scenario.size and all(toy.now < s.came + scenario.delay for s in waits)
        assert toy.scheduler.due == (min(s.came for s in waits) + scenario.delay if waits else None)
        assert not waits or not toy.idle or not toy.scheduler.running, "sequences run, and no step is made"
        toy.run()
        toy.take()
    toy.now += scenario.delay
    toy.drain()
    assert toy.scheduler.due is None


def test_those_that_were_gathered_enter_in_one_step() -> None:
    toy = Toy(limits(batching=Batching(3, 1.0)))
    asked = [request(f"r{i}", [1, i], 3) for i in range(4)]
    for r in asked[:2]:
        toy.add(r)
    assert toy.send() is None and toy.scheduler.due == 1.0
    toy.now = 0.5
    for r in asked[2:]:
        toy.add(r)
    plan = toy.send()
    assert plan is not None and len(plan.chunks) == 4 and toy.scheduler.due is None
    toy.drain()
    assert_right(toy, *asked)


def test_choices_of_one_request_count_each() -> None:
    toy = Toy(limits(batching=Batching(3, 1.0)))
    r = request("r", [1, 2], 3, n=3)
    toy.add(r)
    assert toy.send() is not None
    toy.drain()
    assert_right(toy, r)


def test_what_runs_goes_on_while_others_are_gathered() -> None:
    toy = Toy(limits(batching=Batching(2, 1.0)))
    running = [request(f"r{i}", [1, i], 8) for i in range(2)]
    for r in running:
        toy.add(r)
    toy.step()
    toy.add(late := request("late", [3], 2))
    for _ in range(3):
        plan = toy.step()
        assert plan is not None and len(plan.chunks) == 2
    toy.now = 1.0
    plan = toy.step()
    assert plan is not None and len(plan.chunks) == 3
    toy.drain()
    assert_right(toy, *running, late)


def test_who_was_preempted_or_comes_from_another_route_does_not_wait_again() -> None:
    toy = Toy(limits(batching=Batching(4, 1.0)))
    toy.add(request("a", [1, 2], 6))
    toy.now = 1.0
    toy.step()
    (sequence,) = toy.scheduler.slots.running
    toy.scheduler.slots.preempt(sequence)
    assert not sequence.held and toy.step() is not None and toy.scheduler.running == 1
    other = Toy(limits(batching=Batching(4, 1.0)))
    other.scheduler.add(request("b", [1, 2], 6), {0: [5]}, now=0.0)
    assert other.scheduler.schedule(0.0) is not None


@pytest.mark.parametrize("size", [1, 5])
def test_without_a_delay_nobody_waits(size: int) -> None:
    toy = Toy(limits(batching=Batching(size, 0.0)))
    toy.add(request("a", [1]))
    assert toy.scheduler.due is None and toy.send() is not None
    toy.cancel(RequestId("a"))


def test_without_a_delay_nobody_is_looked_at() -> None:
    def waiting() -> Iterator[Sequence]:
        raise AssertionError("a queue may be long")
        yield

    release(waiting(), Batching(4, 0.0), 1.0)
    assert due(waiting(), Batching(4, 0.0)) is None
