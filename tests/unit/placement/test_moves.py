"""From one placement to the next: as little as pays, and never what does not fit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CapacityError, NotEnoughMemory
from shoal.placement.moves import Moves, Residency, overlap, spans
from shoal.placement.partition import Costs, Placement, place, placed
from shoal.placement.profile import LinkSpeed, LinkSpeeds, NodeProfile
from tests.support.nodes import DEMAND, MB, assert_whole, clusters, model, node

Holdings = dict[str, Residency]
TWO = [node("a"), node("b")]


def layout(placement: Placement | None) -> list[tuple[str, int, int]]:
    assert placement is not None
    return [(s.node, s.first, s.end) for s in placement.stages]


def dealt(moves: Moves, nodes: list[NodeProfile], *bounds: int) -> Placement:
    """So many layers each, in order."""
    return placed(nodes, [0, *bounds], Costs(moves.model, moves.demand, len(nodes)), moves.links, moves.demand, 4096)


def held(placement: Placement) -> Holdings:
    """Each node of a route that serves has its layers, and their keys and values."""
    return {s.node: Residency((range(s.first, s.end),), range(s.first, s.end)) for s in placement.stages}


# What is to be filled


@pytest.mark.parametrize(
    ("stages", "gone"),
    [
        ([(range(6), range(6))], []),
        ([(range(6), range(0))], [(0, 6)]),
        ([(range(3), range(3)), (range(3, 6), range(0))], [(3, 6)]),
        ([(range(3), range(2)), (range(3, 6), range(4, 6))], [(2, 4)]),
        ([(range(2), range(0)), (range(2, 4), range(2, 4)), (range(4, 6), range(0))], [(0, 2), (4, 6)]),
    ],
)
def test_spans_are_the_runs_of_layers_that_nobody_kept(stages: list[tuple[range, range]], gone: list[tuple[int, int]]):
    assert spans(stages, 6) == gone


@pytest.mark.parametrize(
    ("a", "b", "both"), [(range(4), range(2, 6), range(2, 4)), (range(2), range(2, 4), range(0)), (range(0), range(4), range(0))]
)
def test_an_overlap_is_empty_or_what_both_have(a: range, b: range, both: range):
    assert overlap(a, b) == overlap(b, a) == both


# The first placement


def test_layers_stay_where_they_lie_if_that_is_nearly_as_fast():
    nodes = [node("a"), node("b")]
    moves = Moves(model(head=0), DEMAND)
    residencies = {"b": Residency((range(3),)), "a": Residency((range(3, 6),))}
    assert layout(moves.first(nodes, residencies)) == [("b", 0, 3), ("a", 3, 6)]


def test_layers_that_lie_where_it_is_slow_are_moved():
    nodes = [node("slow", speed=1e8), node("fast", speed=10e9)]
    assert layout(Moves(model(), DEMAND).first(nodes, {"slow": Residency((range(6),))})) == [("fast", 0, 6)]


def test_layers_of_which_some_lie_nowhere_are_placed_anew():
    nodes = [node("a"), node("b")]
    assert len(Moves(model(), DEMAND).first(nodes, {"a": Residency((range(2),)), "b": Residency((range(3, 6),))}).stages) > 0


def test_ranges_that_the_model_does_not_have_are_nothing_held():
    assert layout(Moves(model(), DEMAND).first([node("a")], {"a": Residency((range(99), range(0)))})) == [("a", 0, 6)]


def test_spread_gives_every_node_a_layer_even_where_one_holds_all():
    moves = Moves(model(), DEMAND, spread=True)
    nodes = [node("a"), node("b"), node("c")]
    assert len(moves.first(nodes, {}).stages) == 3
    assert len(moves.first(nodes, {"a": Residency((range(6),))}).stages) == 3


def test_spares_are_kept_out_even_where_layers_lie_on_them():
    moves = Moves(model(), DEMAND, spares=1)
    residencies = {"a": Residency((range(3),)), "b": Residency((range(3, 6),))}
    assert len(moves.first(TWO, {}).stages) == 1
    assert len(moves.first(TWO, residencies).stages) == 1


def test_the_last_node_is_no_spare():
    assert layout(Moves(model(), DEMAND, spares=3).first([node("a")], {})) == [("a", 0, 6)]


def test_no_node_is_no_placement():
    moves = Moves(model(), DEMAND)
    with pytest.raises(CapacityError):
        moves.first([], {})
    with pytest.raises(CapacityError):
        moves.recover(dealt(moves, [node("a")], 6), [], {}, 0)


# After a loss


def lost(moves: Moves, old: Placement, nodes: list[NodeProfile], tokens: int = 100) -> Placement:
    return moves.recover(old, nodes, {name: h for name, h in held(old).items() if name in {n.name for n in nodes}}, tokens)


def test_a_spare_takes_over_where_it_is_as_good():
    moves = Moves(model(head=0), DEMAND)
    old = dealt(moves, TWO, 3, 6)
    assert layout(lost(moves, old, [node("a"), node("c")])) == [("a", 0, 3), ("c", 3, 6)]


def test_the_neighbour_takes_over_where_there_is_no_spare():
    moves = Moves(model(), DEMAND)
    assert layout(lost(moves, dealt(moves, TWO, 3, 6), [node("a")])) == [("a", 0, 6)]


def test_the_neighbour_takes_over_where_the_spare_is_a_snail():
    moves = Moves(model(), DEMAND)
    assert layout(lost(moves, dealt(moves, TWO, 3, 6), [node("a"), node("snail", speed=1e7)])) == [("a", 0, 6)]


def test_both_neighbours_take_a_part_where_neither_could_take_all():
    three = [node("a", 50 * MB), node("b", 50 * MB), node("c", 50 * MB)]
    moves = Moves(model(layers=6, head=0), replace(DEMAND, kv_tokens=256))
    old = dealt(moves, three, 2, 4, 6)
    old = replace(old, kv_tokens=256)
    assert layout(lost(moves, old, [three[0], three[2]])) == [("a", 0, 3), ("c", 3, 6)]


def test_a_better_split_is_taken_anew_where_little_was_computed():
    """The spare would do, but is so slow that loading more on the fast one pays within the minute."""
    cost = model(layers=12)
    moves = Moves(cost, DEMAND)
    old = dealt(moves, [node("a"), node("b")], 2, 12)
    recovered = lost(moves, old, [node("a"), node("c", speed=0.5e9)], tokens=0)
    assert recovered.tokens_per_second == place([node("a"), node("c", speed=0.5e9)], LinkSpeeds(), cost, DEMAND).tokens_per_second


@pytest.mark.parametrize(("tokens", "most"), [(0, 6), (10_000, 10)])
def test_the_more_was_computed_the_more_layers_stay_where_they_are(tokens: int, most: int):
    """An even split is faster, but four more layers would have to be filled: at 20 ms each and token."""
    three = [node(name, flops=1e9) for name in "abc"]
    moves = Moves(model(layers=12, head=0), DEMAND)
    recovered = lost(moves, dealt(moves, three, 2, 10, 12), three[1:], tokens)
    assert max(stage.layers for stage in recovered.stages) == most


def test_two_that_are_lost_side_by_side_are_taken_by_one_spare():
    moves = Moves(model(head=0), DEMAND)
    four = [node("a", 40 * MB), node("b"), node("c"), node("d", 40 * MB)]
    old = dealt(moves, four, 2, 3, 4, 6)
    assert layout(lost(moves, old, [four[0], four[3], node("e", 40 * MB)])) == [("a", 0, 2), ("e", 2, 4), ("d", 4, 6)]


def test_the_pool_shrinks_where_nothing_else_would_do():
    moves = Moves(model(kv=4096), DEMAND)
    small = [node("a", 90 * MB), node("b", 90 * MB)]
    recovered = lost(moves, dealt(moves, small, 3, 6), small[:1])
    assert recovered.kv_tokens < 4096
    assert_whole(recovered, moves.model, small)


def test_a_spare_is_used_where_nothing_else_would_do():
    moves = Moves(model(), DEMAND, spares=1)
    small = [node("a", 60 * MB), node("b", 60 * MB), node("c", 60 * MB)]
    old = dealt(moves, small[:2], 3, 6)
    assert layout(lost(moves, old, [small[0], small[2]])) == [("a", 0, 3), ("c", 3, 6)]


def test_what_cannot_be_recovered_says_what_is_missing():
    moves = Moves(model(), DEMAND)
    small = [node("a", 40 * MB), node("b", 40 * MB)]
    with pytest.raises(NotEnoughMemory):
        lost(moves, dealt(moves, small, 3, 6), small[:1])


# While it serves


@pytest.mark.parametrize(("beside", "found"), [(False, [("b", 0, 4), ("a", 4, 6)]), (True, [("a", 0, 3), ("b", 3, 6)])])
def test_a_drain_takes_what_fits_beside_what_runs(beside: bool, found: list[tuple[str, int, int]]):
    """a has 51 MB: 29 for the two layers and the head that it would be given, 43 for the three that it runs."""
    three = [node("a", 51 * MB, 5e9), node("b", 89 * MB, 2e9), node("c", 85 * MB, 5e9)]
    moves = Moves(model(head=20 * MB), DEMAND)
    old = dealt(moves, three, 3, 4, 6)
    assert layout(moves.recover(old, three[:2], held(old), 100, beside)) == found


def test_a_node_that_makes_it_much_faster_is_taken_in():
    moves = Moves(model(), DEMAND)
    now = dealt(moves, [node("a", speed=1e9)], 6)
    better = moves.improve(now, [node("a", speed=1e9), node("fast", speed=20e9)], held(now), 100)
    assert "fast" in {name for name, _, _ in layout(better)}


def test_a_node_that_makes_it_hardly_faster_is_not():
    moves = Moves(model(), replace(DEMAND, slots=1))
    now = dealt(moves, TWO[:1], 6)
    assert moves.improve(now, [node("a"), node("b", speed=11e9)], held(now), 0) is None


def test_what_would_pause_for_longer_than_it_gains_is_not_done():
    """Slow at prefill: filling takes minutes."""
    moves = Moves(model(), replace(DEMAND, slots=1))
    nodes = [node("a", flops=3e10), node("b", speed=13e9, flops=3e10)]
    now = dealt(moves, nodes[:1], 6)
    assert layout(moves.improve(now, nodes, held(now), 0)) == [("b", 0, 6)]
    assert moves.improve(now, nodes, held(now), 100_000) is None


def test_a_stage_that_turned_out_slow_is_relieved():
    moves = Moves(model(layers=12, head=0), DEMAND)
    now = dealt(moves, TWO, 6, 12)
    assert moves.improve(now, TWO, held(now), 100) is None
    better = moves.improve(now, [node("a"), node("b", speed=2e9)], held(now), 100)
    assert better is not None
    assert {s.node: s.layers for s in better.stages}.get("b", 0) < 6


def test_spread_leaves_out_a_node_that_is_too_small_for_any_layer():
    moves = Moves(model(), DEMAND, spread=True)
    nodes = [node("a"), node("b"), node("tiny", memory=1)]
    assert {stage.node for stage in moves.first(nodes, {}).stages} == {"a", "b"}


def test_spread_takes_every_node_in_whatever_it_costs():
    moves = Moves(model(), DEMAND, spread=True)
    now = dealt(moves, TWO, 3, 6)
    nodes = [*TWO, node("snail", speed=1e8)]
    better = moves.improve(now, nodes, held(now), 100)
    assert better is not None
    assert len(better.stages) == 3
    assert moves.improve(better, nodes, held(better), 100) is None


def test_a_node_is_exchanged_where_each_has_but_one_layer():
    """More nodes than layers: spread asks for as many stages as there can be."""
    moves = Moves(model(layers=2, head=0), DEMAND, spread=True)
    now = dealt(moves, [node("a"), node("snail", speed=1e8)], 1, 2)
    better = moves.improve(now, [node("a"), node("snail", speed=1e8), node("b")], held(now), 0)
    assert better is not None
    assert {s.node for s in better.stages} == {"a", "b"}


def test_a_spare_that_is_faster_is_exchanged_but_not_added():
    moves = Moves(model(), DEMAND, spares=1)
    now = dealt(moves, [node("a", speed=1e9), node("b", speed=1e9)], 3, 6)
    better = moves.improve(now, [node("a", speed=1e9), node("b", speed=1e9), node("c", speed=20e9)], held(now), 0)
    assert better is not None
    assert len(better.stages) <= 2
    assert "c" in {s.node for s in better.stages}


def test_what_does_not_fit_beside_what_runs_is_not_moved_to():
    """b could hold other layers, but not while it holds these."""
    moves = Moves(model(layers=6, layer=10 * MB, head=0), DEMAND)
    memory = 65 * MB  # four layers with their KV pool, and some
    now = dealt(moves, [node("a", memory), node("b", memory, speed=2e9)], 3, 6)
    better = moves.improve(now, [node("a", memory), node("b", memory, speed=2e9)], held(now), 0)
    assert better is not None
    for stage in better.stages:
        mine, has = range(stage.first, stage.end), held(now)[stage.node].filled
        assert (len(set(mine) | set(has))) * 10 * MB + len(has) * 4 * MB + MB <= memory


def test_the_head_that_the_last_stage_has_already_needs_no_room_again():
    """b gives layers up and keeps the head: nothing is loaded there."""
    moves = Moves(model(layers=6, head=40 * MB), DEMAND)
    now = dealt(moves, TWO, 2, 6)
    nodes = [node("a"), node("b", 100 * MB, speed=2e9)]
    better = moves.improve(now, nodes, held(now), 0)
    assert better is not None
    assert layout(better)[-1][0] == "b" or len(better.stages) == 1
    assert moves._fits_beside(dealt(moves, nodes, 4, 6), {n.name: n for n in nodes}, held(now))


def test_a_far_node_is_not_taken_in():
    moves = Moves(model(), DEMAND, links=LinkSpeeds({"b": LinkSpeed(2.0)}))
    now = dealt(moves, [node("a")], 6)
    assert moves.improve(now, TWO, held(now), 0) is None


# Whatever the nodes


def test_a_placement_recovers_from_its_own_nodes_as_it_was():
    moves = Moves(model(head=0), DEMAND)
    old = dealt(moves, TWO, 3, 6)
    assert layout(lost(moves, old, TWO)) == layout(old)


@pytest.mark.slow
@settings(max_examples=120)
@given(clusters(4), clusters(2), st.integers(1, 8), st.sets(st.integers(0, 3), max_size=3), st.integers(0, 20_000))
def test_what_is_recovered_is_whole_and_fits(nodes: list[NodeProfile], others: list[NodeProfile], layers: int, gone: set[int], tokens: int):
    moves = Moves(model(layers), DEMAND)
    spares = [replace(other, name=f"s{i}") for i, other in enumerate(others)]
    left = [n for i, n in enumerate(nodes) if i not in gone] + spares
    try:
        old = moves.first(nodes, {})
        new = lost(moves, old, left, tokens)
    except CapacityError:
        return
    assert_whole(new, moves.model, left)
    assert new.kv_tokens <= old.kv_tokens or new.kv_tokens <= DEMAND.kv_tokens


@pytest.mark.slow
@settings(max_examples=80)
@given(clusters(4), st.integers(1, 8), st.booleans(), st.integers(0, 2), st.integers(0, 20_000))
def test_improving_comes_to_an_end(nodes: list[NodeProfile], layers: int, spread: bool, spares: int, tokens: int):
    """No ping-pong: each move that is not forced is faster than what it leaves, and what came last is left alone."""
    moves = Moves(model(layers), DEMAND, spread, spares)
    try:
        now = moves.first(nodes[:1], {})
    except CapacityError:
        return
    speeds: list[float] = []
    while (better := moves.improve(now, nodes, held(now), tokens)) is not None:
        assert_whole(better, moves.model, nodes)
        speeds.append(better.tokens_per_second)
        now = better
    assert all(late > 1.1 * early for early, late in pairwise(speeds))
    assert len(now.stages) <= max(1, len(nodes) - spares)
