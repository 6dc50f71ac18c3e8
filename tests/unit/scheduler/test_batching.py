"""Streams are spread over steps by what their rows cost: steps take about equally long, and no stream is left out."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shoal.scheduler.batching import StepShare, spread
from shoal.scheduler.cost import StageCost, StepCost
from shoal.scheduler.scheduler import Scheduler
from tests.support.toy_stage import Toy, limits, request

weights = st.lists(st.integers(1, 500), max_size=60)
groups = st.integers(1, 8)


@given(weights, groups)
def test_nothing_is_lost_and_groups_differ_by_one_weight_at_most(weights: list[int], groups: int):
    made = spread(weights, groups)
    assert len(made) == groups
    assert sorted(weight for group in made for weight in group) == sorted(weights)
    assert max(map(sum, made)) - min(map(sum, made)) <= max(weights, default=0)


@given(st.integers(0, 60), groups)
def test_equal_weights_are_spread_evenly(count: int, groups: int):
    sizes = [len(group) for group in spread([7] * count, groups)]
    assert max(sizes) - min(sizes) <= 1


def test_the_heaviest_stream_is_alone_if_it_weighs_as_much_as_all_others():
    assert sorted(map(sorted, spread([9, 1, 2, 3, 3], 2))) == [[1, 2, 3, 3], [9]]


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=40), groups)
def test_a_step_holds_the_heaviest_group_and_less_than_one_row_more(lengths: list[int], steps: int):
    share = StepShare.of([length - 1 for length in lengths], steps, 1.0)
    assert share.holds(share.most)
    assert share.filled(share.most)
    assert not share.holds(share.most + min(lengths))
    assert share.most >= sum(lengths) / steps


@given(st.integers(1, 40), groups)
def test_streams_that_are_alike_are_counted(count: int, steps: int):
    share, each = StepShare.of([5] * count, steps), -(-count // steps)
    assert share.holds(each)
    assert not share.holds(each + 1)
    assert not share.filled(each - 1)


def test_nothing_runs():
    assert not StepShare.of([], 2).holds(1)


def steps_of(scheduler: Scheduler, toy: Toy, count: int) -> list[Counter[int]]:
    """Rows by sequence of steps that only sample, with two in flight."""
    out: list[Counter[int]] = []
    while len(out) < count:
        while (plan := toy.send()) is not None:
            if all(len(chunk.tokens) == 1 for chunk in plan.chunks):
                out.append(Counter({chunk.sequence: 1 for chunk in plan.chunks}))
        toy.run()
        toy.take()
        scheduler.check()
    return out


def test_long_and_short_streams_come_to_steps_of_equal_weight_on_two_stages():
    """One stream as long as the eight others together: by number, its step would take nearly three times as long as the other."""
    toy = Toy(limits(blocks=400, block_tokens=4, context=1000, slots=9, depth=2, step_tokens=64))
    toy.scheduler.cost = StepCost([StageCost(1e-9, 1e-6, 1e-3, 0.0)] * 2, StageCost(0.0, 0.0, 0.0, 0.0))
    toy.add(request("long", range(1, 400), 40))
    for i in range(8):
        toy.add(request(f"short {i}", range(1, 50), 60))
    steps = steps_of(toy.scheduler, toy, 40)[-10:]
    assert all(len(step) in (1, 2) if 0 in step else len(step) in (7, 8) for step in steps)
    assert sum(len(step) for step in steps) == 5 * 9, "every stream has a token in every round"


def test_no_stream_waits_much_longer_than_the_others():
    toy = Toy(limits(blocks=600, block_tokens=4, context=1000, slots=7, depth=3, step_tokens=64))
    toy.scheduler.cost = StepCost([StageCost(1e-9, 1e-6, 1e-3, 0.0)] * 3, StageCost(0.0, 0.0, 0.0, 0.0))
    for i, length in enumerate((300, 250, 120, 90, 60, 40, 20)):
        toy.add(request(f"r{i}", range(1, length), 80))
    taken: Counter[int] = sum(steps_of(toy.scheduler, toy, 120), Counter())
    assert min(taken.values()) >= 0.7 * max(taken.values())
