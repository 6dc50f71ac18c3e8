"""What followed what is predicted, whatever the routes are, in tables that do not grow."""

from __future__ import annotations

from operator import itemgetter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.weights.routing_history import RoutingHistory

EXPERTS = [0, 6, 0, 4, 5]
LAYERS = [1, 3, 4]
UNIQUE = (itemgetter(0), itemgetter(1), itemgetter(2))


@st.composite
def visits(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """In the order of the layers, of some steps; the last may be cut off."""
    count = draw(st.integers(0, 30))
    layers = [LAYERS[i % len(LAYERS)] for i in range(count)]
    return [(layer, sorted(draw(st.sets(st.integers(0, EXPERTS[layer] - 1), min_size=1)))) for layer in layers]


def after(made: list[tuple[int, list[int]]]) -> RoutingHistory:
    history = RoutingHistory(EXPERTS)
    for layer, experts in made:
        history.saw(layer, experts)
    return history


@given(visits(), st.integers(0, 8))
def test_predictions_are_experts_of_the_layer_the_likeliest_first(made: list[tuple[int, list[int]]], count: int) -> None:
    history = after(made)
    for layer in LAYERS:
        experts, chances = history.predict(layer, count)
        assert len(experts) == len(chances) <= min(count, EXPERTS[layer])
        assert len(set(experts.tolist())) == len(experts)
        assert all(0 <= expert < EXPERTS[layer] for expert in experts)
        assert np.all((chances > 0) & (chances <= 1))
        assert np.all(np.diff(chances) <= 0)


@given(visits())
def test_only_what_was_seen_is_predicted(made: list[tuple[int, list[int]]]) -> None:
    history = after(made)
    for layer in LAYERS:
        seen = {expert for visited, experts in made if visited == layer for expert in experts}
        assert set(history.predict(layer, 8).experts.tolist()) <= seen


@given(visits())
def test_it_takes_no_more_memory(made: list[tuple[int, list[int]]]) -> None:
    assert after(made).nbytes == 2 * (6 * 5 + 6 * 6 + 4 * 6 + 4 * 4 + 5 * 4 + 5 * 5)


@given(st.lists(st.tuples(*(st.integers(0, EXPERTS[layer] - 1) for layer in LAYERS)), min_size=1, max_size=4, unique_by=UNIQUE))
def test_routes_that_go_round_are_learned(cycle: list[tuple[int, ...]]) -> None:
    """Each expert is of one token of the cycle alone, so what comes next is certain."""
    history = RoutingHistory(EXPERTS)
    wrong = 0
    for i in range(60 * len(cycle)):
        for layer, expert in zip(LAYERS, cycle[i % len(cycle)], strict=True):
            experts, chances = history.predict(layer, 1)
            if i >= 55 * len(cycle):
                wrong += experts.tolist() != [expert] or chances[0] < 0.9
            history.saw(layer, [expert])
    assert not wrong


def test_the_layer_before_and_the_token_before_both_tell() -> None:
    """Expert 0 of layer 1 after 0 of layer 0; expert 3 after itself."""
    rng = np.random.default_rng(0)
    history = RoutingHistory([4, 4])
    experts, first = np.empty(0, np.intp), 0
    for _ in range(400):
        first = int(rng.integers(4))
        history.saw(0, [first])
        experts, _ = history.predict(1, 2)
        history.saw(1, sorted({first, 3}))
    assert set(experts.tolist()) == {first, 3}


def test_what_no_longer_follows_is_forgotten() -> None:
    history = RoutingHistory([4])
    for followers in [1] * 500 + [2] * 100:
        history.saw(0, [0])
        history.saw(0, [followers])
    history.saw(0, [0])
    experts, chances = history.predict(0, 4)
    assert experts[0] == 2
    assert chances[0] > 2 * chances[1]


def test_after_an_interruption_nothing_follows_what_was_before() -> None:
    history = RoutingHistory([4, 4])
    history.saw(0, [1])
    history.interrupt()
    history.saw(1, [2])
    assert len(history.predict(0, 4).experts) == 0
    history.saw(0, [1])
    assert len(history.predict(1, 4).experts) == 0
