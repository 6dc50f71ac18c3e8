"""Splits are whole, within memory, and as good as trying everything."""

from __future__ import annotations

import random
from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.partition import Costs, Placement, place, placed
from shoal.placement.profile import Demand, LinkSpeed, LinkSpeeds, NodeProfile
from tests.support.nodes import DEMAND, MB, assert_whole, clusters, model, node

NO_LINKS = LinkSpeeds()


def slow_links(names: list[str], seconds: float) -> LinkSpeeds:
    return LinkSpeeds({name: LinkSpeed(seconds) for name in names})


def everything(nodes: list[NodeProfile], links: LinkSpeeds, cost: ModelCost, demand: Demand, kv_tokens: int) -> list[Placement]:
    """All splits over all orders of all subsets."""
    out: list[Placement] = []
    for count in range(1, min(len(nodes), len(cost.layers)) + 1):
        costs = Costs(cost, demand, count)
        for order in permutations(nodes, count):
            for inner in combinations(range(1, len(cost.layers)), count - 1):
                bounds = [0, *inner, len(cost.layers)]
                parts = zip(order, bounds[:-1], bounds[1:], strict=True)
                if all(costs.memory(a, b, kv_tokens) <= n.memory for n, a, b in parts):
                    out.append(placed(order, bounds, costs, links, demand, kv_tokens))
    return out


def test_one_node_takes_all():
    placement = place([node("a")], NO_LINKS, model(), DEMAND)
    assert [(s.node, s.first, s.end) for s in placement.stages] == [("a", 0, 6)]
    assert placement.kv_tokens == 4096


def test_equal_nodes_share_equally():
    placement = place([node("a"), node("b")], NO_LINKS, model(layers=6, head=0), DEMAND, at_least=2)
    assert [s.layers for s in placement.stages] == [3, 3]


def test_a_faster_node_takes_more():
    nodes = [node("slow", speed=5e9), node("fast", speed=10e9)]
    placement = place(nodes, NO_LINKS, model(layers=9, head=0), DEMAND, at_least=2)
    assert {s.node: s.layers for s in placement.stages} == {"slow": 3, "fast": 6}


def test_the_head_weighs_on_the_last_stage():
    placement = place([node("a"), node("b")], NO_LINKS, model(layers=8, head=40 * MB), DEMAND, at_least=2)
    assert placement.stages[0].layers > placement.stages[1].layers


def test_a_node_that_only_slows_is_left_out():
    nodes = [node("a"), node("snail", speed=1e6)]
    assert [s.node for s in place(nodes, NO_LINKS, model(), DEMAND).stages] == ["a"]


def test_far_nodes_are_left_out():
    placement = place([node("a"), node("b")], slow_links(["b"], 1.0), model(), DEMAND)
    assert [stage.node for stage in placement.stages] == ["a"]


def test_a_node_that_is_asked_for_is_not_left_out():
    nodes = [node("a"), node("snail", speed=1e6)]
    assert len(place(nodes, NO_LINKS, model(), DEMAND, at_least=2).stages) == 2


def test_more_nodes_than_layers_is_no_error():
    assert len(place([node("a"), node("b"), node("c")], NO_LINKS, model(layers=2), DEMAND, at_least=3).stages) == 2


def test_what_no_node_holds_alone_is_split():
    nodes = [node("a", memory=50 * MB), node("b", memory=50 * MB)]
    placement = place(nodes, NO_LINKS, model(), DEMAND)
    assert len(placement.stages) == 2
    assert_whole(placement, model(), nodes)


def test_the_pool_shrinks_where_memory_is_short():
    nodes = [node("a", memory=76 * MB)]
    placement = place(nodes, NO_LINKS, model(kv=4096), DEMAND)
    assert 256 <= placement.kv_tokens < 4096
    assert_whole(placement, model(kv=4096), nodes)


def test_no_node_is_no_placement():
    with pytest.raises(CapacityError, match="no node"):
        place([], NO_LINKS, model(), DEMAND)


def test_too_little_memory_says_how_much_is_missing():
    with pytest.raises(NotEnoughMemory) as refused:
        place([node("a", memory=30 * MB)], NO_LINKS, model(), DEMAND)
    assert refused.value.needed > refused.value.available == 30 * MB


def test_a_link_cannot_be_faster_than_light():
    with pytest.raises(ValueError, match="at least 0 seconds"):
        LinkSpeed(-1.0)
    with pytest.raises(ValueError, match="at least 0 seconds"):
        LinkSpeed(1.0, 0)


def test_a_link_is_as_slow_as_its_slower_end():
    links = LinkSpeeds({"a": LinkSpeed(0.5, 1e6), "b": LinkSpeed(0.1, 1e5)})
    assert links.between("a", "b") == links.between("b", "a") == LinkSpeed(0.5, 1e5)
    assert links.between("", "b") == LinkSpeed(0.1, 1e5)


def test_what_was_not_measured_is_taken_for_gigabit():
    assert LinkSpeeds({"a": LinkSpeed(1e-5, 1e9)}).between("a", "c") == LinkSpeed()


@pytest.mark.slow
@given(clusters(8), st.integers(1, 12), st.integers(0, 60))
def test_a_placement_is_whole_and_within_memory(nodes: list[NodeProfile], layers: int, head: int):
    cost = model(layers, head=head * MB)
    try:
        placement = place(nodes, NO_LINKS, cost, DEMAND)
    except NotEnoughMemory:
        return
    assert_whole(placement, cost, nodes)


@pytest.mark.slow
@settings(max_examples=60)
@given(clusters(3), st.integers(1, 7), st.integers(0, 60), st.sampled_from([0.0, 1e-4, 3e-3]))
def test_up_to_four_nodes_nothing_is_much_better(nodes: list[NodeProfile], layers: int, head: int, hop: float):
    cost, links = model(layers, head=head * MB), slow_links([n.name for n in nodes], hop)
    try:
        placement = place(nodes, links, cost, DEMAND)
    except NotEnoughMemory:
        assert not everything(nodes, links, cost, DEMAND, DEMAND.least_kv_tokens)
        return
    best = max(p.tokens_per_second for p in everything(nodes, links, cost, DEMAND, placement.kv_tokens))
    assert placement.tokens_per_second >= 0.85 * best


@pytest.mark.slow
@settings(max_examples=40)
@given(clusters(6), st.permutations(range(6)))
def test_the_order_in_which_nodes_joined_hardly_matters_up_to_four(nodes: list[NodeProfile], order: list[int]):
    nodes = nodes[:4]
    shuffled = [nodes[i] for i in order if i < len(nodes)]
    try:
        first = place(nodes, NO_LINKS, model(), DEMAND)
    except NotEnoughMemory:
        return
    assert place(shuffled, NO_LINKS, model(), DEMAND).tokens_per_second == pytest.approx(first.tokens_per_second, rel=0.011)


def test_one_slot_is_not_split_for_nothing():
    """A lone sequence visits every stage for every token: two equal nodes cannot be faster than one."""
    cost = model(layers=6, head=0)
    placement = place([node("a", 900 * MB), node("b", 900 * MB)], LinkSpeeds(), cost, Demand(1, 256, 256))
    assert len(placement.stages) == 1
    assert placement.tokens_per_second <= 1 / placement.latency * 1.001


@pytest.mark.parametrize("big", range(5))
def test_a_large_head_goes_to_the_node_that_holds_it(big: int):
    """Above four nodes the one with most memory always comes first, the head always last."""
    nodes = [node(f"n{i}", (600 if i == big else 35) * MB, 10e9 + i) for i in range(5)]
    cost = model(layers=5, layer=30 * MB, head=400 * MB, kv=64)
    try:
        placement = place(nodes, LinkSpeeds(), cost, Demand(8, 256, 256), at_least=5)
    except NotEnoughMemory as error:
        pytest.fail(str(error))
    assert placement.stages[-1].node == f"n{big}"


def test_five_nodes_are_placed_nearly_as_well_as_can_be():
    """Above four nodes only the fastest and the largest first are tried: here a fast node that must come last is missed."""
    rng = random.Random(1)
    for _ in range(20):
        speeds = [(rng.randint(15, 80) * MB, rng.choice([1e9, 3e9, 1e10, 4e10])) for _ in range(5)]
        nodes = [node(f"n{i}", memory, speed) for i, (memory, speed) in enumerate(speeds)]
        cost, demand = model(5, head=rng.randint(0, 60) * MB), Demand(8, 256, 256)
        if all_of_them := everything(nodes, LinkSpeeds(), cost, demand, 256):
            best = max(p.tokens_per_second for p in all_of_them)
            assert place(nodes, LinkSpeeds(), cost, demand).tokens_per_second >= 0.8 * best


def test_what_is_missing_is_said_where_no_split_fits():
    cost = model(layers=2, layer=30 * MB, head=0, kv=64)
    with pytest.raises(NotEnoughMemory) as refused:
        place([node(f"n{i}", 25 * MB) for i in range(3)], LinkSpeeds(), cost, Demand(1, 64, 64))
    assert refused.value.needed > refused.value.available
