"""Layers that cost different amounts are split as well as trying every cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import NotEnoughMemory
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.moves import Moves, Residency
from shoal.placement.partition import Costs, place, split
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile
from tests.support.nodes import DEMAND, MB, assert_whole, clusters, models, node

SMALL = Matrices(MB, 2 * MB)


def slowest(order: list[NodeProfile], bounds: list[int], costs: Costs) -> float:
    return max(costs.seconds(n, a, b) for n, a, b in zip(order, bounds[:-1], bounds[1:], strict=True))


def fitting_cuts(order: list[NodeProfile], costs: Costs, kv_tokens: int) -> list[list[int]]:
    """Every way to cut the layers that fits the nodes."""
    count = len(costs.model.layers)
    cuts = [[0, *inner, count] for inner in combinations(range(1, count), len(order) - 1)]
    return [
        bounds
        for bounds in cuts
        if all(costs.memory(a, b, kv_tokens) <= n.memory for n, a, b in zip(order, bounds[:-1], bounds[1:], strict=True))
    ]


@settings(max_examples=300)
@given(models(8), clusters(4), st.integers(1, 32), st.sampled_from([0, 256, 4096]), st.sampled_from([0, 256, 8192]))
def test_no_cut_is_better_than_the_one_found(model: ModelCost, order: list[NodeProfile], slots: int, context: int, kv_tokens: int):
    order = order[: len(model.layers)]
    costs = Costs(model, Demand(slots, kv_tokens, kv_tokens, context), len(order))
    found = split(order, costs, kv_tokens)
    fitting = fitting_cuts(order, costs, kv_tokens)
    if found is None:
        assert not fitting
    else:
        assert found in fitting
        assert slowest(order, found, costs) == min(slowest(order, bounds, costs) for bounds in fitting)


@given(models(8), st.integers(1, 10_000))
def test_the_memory_of_a_part_is_that_of_its_layers(model: ModelCost, kv_tokens: int):
    costs, count = Costs(model, DEMAND, 1), len(model.layers)
    for first, end in combinations(range(count + 1), 2):
        wanted = sum(layer.held_bytes + layer.kv_bytes * kv_tokens for layer in model.layers[first:end]) + model.workspace
        if end == count:
            wanted += model.head.size + model.last_bytes
        assert costs.memory(first, end, kv_tokens) == wanted


@given(models(8), clusters(5))
def test_a_placement_of_unequal_layers_is_whole_and_within_memory(model: ModelCost, nodes: list[NodeProfile]):
    try:
        placement = place(nodes, LinkSpeeds(), model, DEMAND)
    except NotEnoughMemory:
        return
    assert_whole(placement, model, nodes)


@given(models(8), clusters(5))
def test_memory_that_is_refused_is_missing(model: ModelCost, nodes: list[NodeProfile]):
    scarce = [NodeProfile(n.name, n.memory // 64, n.bytes_per_second, n.flops) for n in nodes]
    with pytest.raises(NotEnoughMemory) as refused:
        place(scarce, LinkSpeeds(), replace(model, workspace=4 * MB), DEMAND)
    assert refused.value.needed > refused.value.available


def test_dense_layers_before_experts_are_balanced_by_what_is_read():
    """The dense layer reads as much as the eight others, though each of them holds nearly as much as it does."""
    sparse = LayerCost(SMALL, 0, 0, experts=ExpertsCost(16, 2, SMALL))  # 17 MB held, 3 read by one row
    dense = LayerCost(Matrices(24 * MB, 48 * MB), 0, 0)
    model = ModelCost((dense, *[sparse] * 8), Matrices(0, 0), 4096, MB)
    placement = place([node("a"), node("b")], LinkSpeeds(), model, Demand(1, 256, 256, 0), at_least=2)
    assert [s.layers for s in placement.stages] == [1, 8]


@pytest.mark.parametrize(("slots", "cut"), [(2, 13), (64, 9)])
def test_with_more_slots_experts_weigh_more(slots: int, cut: int):
    """The head reads as much as ten of the layers at one row, and as much as two at 32 rows."""
    sparse = LayerCost(SMALL, 0, 0, experts=ExpertsCost(16, 2, SMALL))
    model = ModelCost((sparse,) * 16, Matrices(30 * MB, 1), 4096, MB)
    placement = place([node("a", flops=1e18), node("b", flops=1e18)], LinkSpeeds(), model, Demand(slots, 256, 256, 0), at_least=2)
    assert placement.stages[0].end == cut


def test_layers_with_windows_read_less_of_long_contexts():
    full, local = LayerCost(SMALL, 4096, 0), LayerCost(SMALL, 4096, 0, window=16)
    model = ModelCost((full, full, *[local] * 8), Matrices(0, 0), 4096, MB)
    placement = place([node("a"), node("b")], LinkSpeeds(), model, Demand(32, 4096, 256, 2048), at_least=2)
    assert [s.layers for s in placement.stages] == [1, 9]


@given(models(6))
def test_one_node_needs_the_memory_of_all_layers(model: ModelCost):
    kv = sum(layer.kv_bytes for layer in model.layers) * 1000
    whole = model.held_bytes + kv + model.workspace + model.last_bytes
    demand = Demand(1, 1000, 1000)
    assert place([node("a", memory=whole)], LinkSpeeds(), model, demand).kv_tokens == 1000
    with pytest.raises(NotEnoughMemory):
        place([node("a", memory=whole - 1)], LinkSpeeds(), model, demand)


def test_a_move_waits_for_the_layers_that_are_missing_and_not_for_the_average():
    light, heavy = LayerCost(SMALL, 0, 0), LayerCost(SMALL, 0, 0, experts=ExpertsCost(16, 2, SMALL))
    model = ModelCost((light, heavy), Matrices(0, 0), 4096, MB)
    moves, here = Moves(model, DEMAND), node("a", flops=1e9)
    placement = place([here], LinkSpeeds(), model, DEMAND)
    has = {"a": Residency((range(1),), range(1))}
    refill = moves._pause(placement, has, 1000, loaded=True)
    assert refill == pytest.approx(1000 * heavy.flops(1) / 1e9)
    assert moves._pause(placement, has, 1000, loaded=False) - refill == pytest.approx(heavy.held_bytes / 500e6)
