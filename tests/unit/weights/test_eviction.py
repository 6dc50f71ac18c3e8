"""What each policy evicts first."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.weights.eviction import Eviction, LeastFrequent, LeastRecent
from shoal.weights.expected_use import ExpectedUse
from shoal.weights.oracle import Oracle
from shoal.weights.traces import FLAT, LOCAL, Locality, Visit, replay, routes
from shoal.weights.unit import Unit


def visited(policy: Eviction, *visits: Visit) -> Eviction:
    """After these visits, whose units are held and may go."""
    for layer, experts in visits:
        policy.visit(layer, experts)
        policy.keep(layer, experts)
        policy.offer(layer, experts)
    return policy


def order(policy: Eviction) -> list[Unit]:
    return list(iter(policy.victim, None))


def test_lru_evicts_what_was_needed_longest_ago():
    assert order(visited(LeastRecent(), (0, [1, 2]), (1, [5]), (0, [1]))) == [(0, 2), (1, 5), (0, 1)]


def test_lfu_evicts_what_was_needed_least_often():
    assert order(visited(LeastFrequent(1000), (0, [1]), (0, [1]), (0, [1]), (0, [2]), (0, [2]), (0, [3]))) == [(0, 3), (0, 2), (0, 1)]


def test_a_frequency_fades():
    assert order(visited(LeastFrequent(1), (0, [1]), (0, [1]), (0, []), (0, []), (0, []), (0, [2]))) == [(0, 1), (0, 2)]


def test_lfu_remembers_what_it_evicted():
    policy = visited(LeastFrequent(1000), (0, [1]), (0, [1]), (0, [1]), (0, [2]))
    assert order(policy) == [(0, 2), (0, 1)]
    policy.offer(0, [2, 1])
    assert order(policy) == [(0, 2), (0, 1)]


def test_the_oracle_evicts_what_is_needed_last():
    policy = Oracle([(0, [1, 2, 3]), (1, [4]), (0, [2]), (0, [1])])
    visited(policy, (0, [1, 2, 3]))
    assert order(policy) == [(0, 3), (0, 1), (0, 2)]


def test_the_oracle_refuses_another_story():
    policy = Oracle([(0, [1, 2])])
    with pytest.raises(ValueError, match="visit 0"):
        policy.visit(0, [1])
    policy.visit(0, [1, 2])
    with pytest.raises(ValueError, match="visit 1"):
        policy.visit(0, [1, 2])


def test_of_equals_that_every_step_needs_the_layer_just_done_goes_first():
    policy = ExpectedUse([2, 2, 2])
    for _ in range(4):
        visited(policy, (0, [0, 1]), (1, [0, 1]), (2, [0, 1]))
    visited(policy, (0, [0, 1]))
    assert [unit.layer for unit in order(policy)] == [0, 0, 2, 2, 1, 1]


def test_repetition_is_learned():
    def after(locality: Locality) -> float:
        policy = ExpectedUse([32] * 4)
        for visits in routes(locality, 400, 4, 32, 4, 1, np.random.default_rng(0)):
            visited(policy, *visits)
        return policy.repetition

    assert after(FLAT) == pytest.approx(0, abs=0.06)
    assert after(Locality(0.0, 0.5)) == pytest.approx(0.5, abs=0.06)
    assert after(Locality(1.2, 0.35)) == pytest.approx(0.35, abs=0.08)


@pytest.mark.slow
def test_a_prompt_finds_much_and_costs_later_steps_little():
    layers, experts, slots = 6, 64, 6 * 48
    tokens = routes(LOCAL, 200, layers, experts, 4, 1, np.random.default_rng(0))
    prompts = routes(LOCAL, 4, layers, experts, 4, 300, np.random.default_rng(0))

    def hits(trace: list[list[Visit]], warm_up: int) -> float:
        return replay(trace, [experts] * layers, slots, ExpectedUse([experts] * layers), warm_up).hit_rate

    assert hits([*tokens[:100], prompts[0]], 100) > 0.7
    assert hits(tokens[:100] + prompts[:2] + tokens[100:], 102) > hits(tokens, 100) - 0.02


def test_layers_without_units_are_passed_over():
    policy = ExpectedUse([0, 2, 0])
    visited(policy, (0, []), (1, [1]), (2, []))
    assert order(policy) == [(1, 1)]


@pytest.mark.parametrize("policy", [LeastFrequent(3), ExpectedUse([4], half_life=3)])
def test_orders_that_nobody_asks_for_do_not_grow(policy: LeastFrequent | ExpectedUse):
    rng = random.Random(0)
    for _ in range(3000):
        visited(policy, (0, rng.sample(range(4), 2)))
    kept = policy._order if isinstance(policy, LeastFrequent) else [*policy._layers[0].others, *policy._layers[0].recent]
    assert len(kept) <= 100
    assert sorted(order(policy)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("locality", [FLAT, LOCAL, Locality(0.0, 0.4), Locality(1.0, 0.35)], ids=["flat", "local", "repeated", "both"])
@pytest.mark.parametrize("streams", [1, 8])
@pytest.mark.parametrize("resident", [0.75, 0.5, 0.25])
def test_the_adaptive_policy_is_as_good_as_the_better_of_the_others(locality: Locality, streams: int, resident: float):
    layers, experts = 6, 64
    trace = routes(locality, 200, layers, experts, 4, streams, np.random.default_rng(2))

    def rate(policy: Eviction) -> float:
        return replay(trace, [experts] * layers, int(resident * layers * experts), policy, 60).hit_rate

    assert rate(ExpectedUse([experts] * layers)) > max(rate(LeastRecent()), rate(LeastFrequent(64))) - 0.01


traces = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)),
    min_size=1,
    max_size=60,
)


@given(traces, st.integers(4, 14))
def test_no_policy_reads_less_than_the_oracle(trace: list[Visit], slots: int):
    def misses(policy: Eviction) -> int:
        return replay([trace], [5, 5, 5], slots, policy).misses

    best = misses(Oracle(trace))
    assert best <= min(misses(LeastRecent()), misses(LeastFrequent(3)), misses(ExpectedUse([5, 5, 5])))
