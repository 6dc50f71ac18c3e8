"""Placements where memory does not suffice for all weights: who streams, how much it may hold, and when that ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import NotEnoughMemory
from shoal.placement.cost import ExpertsCost, LayerCost, Matrices, ModelCost
from shoal.placement.division import StageSizes, divide, least_expected
from shoal.placement.moves import Moves, Residency
from shoal.placement.partition import Costs, Placement, StagePlan, place
from shoal.placement.profile import Demand, LinkSpeeds, NodeProfile
from tests.support.nodes import DEMAND, MB, clusters, model, models, node

NO_LINKS = LinkSpeeds()
DISK = 1e9


def disk(name: str, memory: int, **others: float) -> NodeProfile:
    """A node that can stream."""
    return replace(node(name, memory * MB), disk=DISK, **others)  # type: ignore[arg-type]


def mixture(layers: int = 6, experts: int = 16, each: int = MB, chosen: int = 2) -> ModelCost:
    routed = ExpertsCost(experts, chosen, Matrices(each, each))
    return ModelCost(
        (LayerCost(Matrices(2 * MB, 2 * MB), 1024, attention=4096, experts=routed),) * layers, Matrices(5 * MB, 5 * MB), 4096, MB
    )


def kv(cost: ModelCost, stage: StagePlan, tokens: int) -> int:
    return sum(layer.kv_bytes for layer in cost.layers[stage.first : stage.end]) * tokens


def beside(cost: ModelCost, placement: Placement, stage: StagePlan) -> int:
    """Bytes that a stage takes besides its weights."""
    last = cost.last_bytes if stage.end == len(cost.layers) else 0
    return kv(cost, stage, placement.kv_tokens) + cost.workspace + last


def sound(placement: Placement, cost: ModelCost, nodes: list[NodeProfile]) -> None:
    """Every layer once, and each stage within its node's memory, whether it streams or not."""
    here = {n.name: n for n in nodes}
    assert [s.first for s in placement.stages] == [0, *(s.end for s in placement.stages[:-1])]
    assert placement.stages[-1].end == len(cost.layers)
    for stage in placement.stages:
        room = here[stage.node].memory - beside(cost, placement, stage)
        sizes = StageSizes.of(cost, stage.first, stage.end)
        assert stage.weight_bytes == sizes.total
        if stage.memory:
            assert here[stage.node].disk > 0
            assert stage.memory == room < stage.weight_bytes
            assert divide(sizes, stage.memory).nbytes <= room
        else:
            assert stage.weight_bytes <= room


def streaming(placement: Placement) -> list[str]:
    return [stage.node for stage in placement.stages if stage.memory]


# Who streams


@pytest.mark.parametrize("cost", [model(), mixture()], ids=["dense", "experts"])
def test_where_all_fits_a_disk_changes_nothing(cost: ModelCost) -> None:
    whole = place([node("a", 300 * MB)], NO_LINKS, cost, DEMAND)
    assert place([disk("a", 300)], NO_LINKS, cost, DEMAND) == whole
    assert streaming(whole) == []


@pytest.mark.parametrize("cost", [model(), mixture()], ids=["dense", "experts"])
def test_too_small_a_node_streams(cost: ModelCost) -> None:
    placement = place([disk("a", 40)], NO_LINKS, cost, DEMAND)
    assert streaming(placement) == ["a"]
    least_pool = place([disk("a", 40)], NO_LINKS, cost, replace(DEMAND, kv_tokens=DEMAND.least_kv_tokens))
    assert placement.kv_tokens > least_pool.kv_tokens, "more keys and values, as long as they cost little speed"
    assert placement.tokens_per_second >= 0.9 * least_pool.tokens_per_second
    sound(placement, cost, [disk("a", 40)])


def test_a_node_without_a_disk_never_streams() -> None:
    with pytest.raises(NotEnoughMemory):
        place([node("a", 40 * MB)], NO_LINKS, model(), DEMAND)


def test_beside_a_node_without_a_disk_the_other_one_streams() -> None:
    nodes = [node("plain", 25 * MB), disk("disk", 35)]
    placement = place(nodes, NO_LINKS, model(), DEMAND)
    assert streaming(placement) == ["disk"]
    sound(placement, model(), nodes)


def test_nodes_that_hold_all_together_do_not_stream() -> None:
    nodes = [disk("a", 45), disk("b", 45)]
    placement = place(nodes, NO_LINKS, model(), DEMAND)
    assert streaming(placement) == []
    assert len(placement.stages) == 2


def test_fewer_keys_and_values_come_before_streaming() -> None:
    cost = model(kv=10_000)
    needed = Costs(cost, DEMAND, 1).memory(0, 6, DEMAND.least_kv_tokens)
    placement = place([NodeProfile("a", needed, 10e9, 1e12, DISK)], NO_LINKS, cost, DEMAND)
    assert (streaming(placement), placement.kv_tokens) == ([], DEMAND.least_kv_tokens)
    assert streaming(place([NodeProfile("a", needed - 1, 10e9, 1e12, DISK)], NO_LINKS, cost, DEMAND)) == ["a"]


@pytest.mark.parametrize("cost", [model(), mixture()], ids=["dense", "experts"])
def test_the_least_memory_streams_and_a_byte_less_is_refused(cost: ModelCost) -> None:
    others = Costs(cost, DEMAND, 1)
    low = least_expected(StageSizes.of(cost, 0, 6)) + others.memory(0, 6, DEMAND.least_kv_tokens) - others.weights(0, 6)
    assert streaming(place([NodeProfile("a", low, 10e9, 1e12, DISK)], NO_LINKS, cost, DEMAND)) == ["a"]
    with pytest.raises(NotEnoughMemory):
        place([NodeProfile("a", low - 1, 10e9, 1e12, DISK)], NO_LINKS, cost, DEMAND)


disks = st.sampled_from([0.0, 2e8, 3e9])


@settings(max_examples=200)
@given(models(6), clusters(3), st.data())
def test_whatever_is_placed_is_within_memory_and_streams_only_in_need(
    cost: ModelCost, plain: list[NodeProfile], data: st.DataObject
) -> None:
    nodes = [replace(one, disk=data.draw(disks)) for one in plain]
    try:
        whole = place(plain, NO_LINKS, cost, DEMAND)
    except NotEnoughMemory:
        whole = None
    try:
        placement = place(nodes, NO_LINKS, cost, DEMAND)
    except NotEnoughMemory:
        assert whole is None
        return
    sound(placement, cost, nodes)
    if whole is None:
        assert streaming(placement)
    else:
        assert placement == whole


@settings(max_examples=100)
@given(models(5), st.integers(5, 200), st.integers(1, 100))
def test_more_memory_is_never_much_slower(cost: ModelCost, memory: int, more: int) -> None:
    try:
        little = place([disk("a", memory)], NO_LINKS, cost, DEMAND)
    except NotEnoughMemory:
        return
    much = place([disk("a", memory + more)], NO_LINKS, cost, DEMAND)
    assert much.tokens_per_second >= 0.89 * little.tokens_per_second, "a tenth may be given for a larger pool"


# What is predicted


def test_a_step_waits_for_the_disk_where_that_is_slower() -> None:
    cost, demand = model(layers=10, head=0), Demand(slots=1, kv_tokens=256, least_kv_tokens=256)
    placement = place([disk("a", 54)], NO_LINKS, cost, demand)  # three of ten layers are held beside a ring of two
    room = placement.stages[0].memory
    away = 10 - len(divide(StageSizes.of(cost, 0, 10), room).held)
    assert placement.slowest == pytest.approx(away * 10 * MB / DISK)


def test_a_faster_disk_is_faster_up_to_what_memory_gives() -> None:
    def seconds(speed: float) -> float:
        return place([replace(disk("a", 54), disk=speed)], NO_LINKS, model(), DEMAND).slowest

    held = place([disk("a", 300)], NO_LINKS, model(), DEMAND).slowest
    assert seconds(1e8) > seconds(1e9) > seconds(5e9) >= held
    assert seconds(1e12) == pytest.approx(held, rel=0.01)


def test_fewer_experts_held_are_more_seconds() -> None:
    def seconds(memory: int) -> float:
        return place([disk("a", memory)], NO_LINKS, mixture(), DEMAND).slowest

    assert seconds(30) > seconds(60) > seconds(90) > seconds(200)


# When it ends


def moves(cost: ModelCost) -> Moves:
    return Moves(cost, DEMAND)


def held(placement: Placement) -> dict[str, Residency]:
    return {s.node: Residency((range(s.first, s.end),), range(s.first, s.end)) for s in placement.stages}


@pytest.mark.parametrize("cost", [model(), mixture()], ids=["dense", "experts"])
def test_a_node_that_joins_ends_the_streaming(cost: ModelCost) -> None:
    alone = place([disk("a", 70 if cost.layers[0].experts else 45)], NO_LINKS, cost, DEMAND)
    assert streaming(alone) == ["a"]
    nodes = [disk("a", 70 if cost.layers[0].experts else 45), disk("b", 70 if cost.layers[0].experts else 45)]
    better = moves(cost).improve(alone, nodes, held(alone), 100)
    assert better is not None
    assert streaming(better) == []
    assert {stage.node for stage in better.stages} == {"a", "b"}
    sound(better, cost, nodes)


def test_a_larger_node_that_joins_takes_all() -> None:
    alone = place([disk("a", 45)], NO_LINKS, model(), DEMAND)
    better = moves(model()).improve(alone, [disk("a", 45), node("b", 300 * MB)], held(alone), 100)
    assert better is not None
    assert streaming(better) == []


def test_nothing_changes_for_the_same_nodes() -> None:
    alone = place([disk("a", 45)], NO_LINKS, model(), DEMAND)
    assert moves(model()).improve(alone, [disk("a", 45)], held(alone), 100) is None


def test_a_node_that_is_of_no_use_changes_nothing() -> None:
    alone = place([disk("a", 45)], NO_LINKS, model(), DEMAND)
    assert moves(model()).improve(alone, [disk("a", 45), node("tiny", 2 * MB)], held(alone), 100) is None


@pytest.mark.parametrize("cost", [model(), mixture()], ids=["dense", "experts"])
def test_where_a_node_is_lost_the_other_one_streams(cost: ModelCost) -> None:
    room = 70 if cost.layers[0].experts else 45
    both = [disk("a", room), disk("b", room)]
    before = place(both, NO_LINKS, cost, DEMAND)
    assert streaming(before) == []
    after = moves(cost).recover(before, both[:1], held(before), 100)
    assert streaming(after) == ["a"]
    sound(after, cost, both[:1])


def test_where_a_node_is_lost_and_none_can_stream_the_loss_is_said() -> None:
    both = [node("a", 45 * MB), node("b", 45 * MB)]
    before = place(both, NO_LINKS, model(), DEMAND)
    with pytest.raises(NotEnoughMemory):
        moves(model()).recover(before, both[:1], held(before), 100)


def test_a_stage_that_streamed_is_taken_over_by_another_that_streams() -> None:
    alone = place([disk("a", 45)], NO_LINKS, model(), DEMAND)
    after = moves(model()).recover(alone, [disk("b", 45)], {}, 100)
    assert streaming(after) == ["b"]
    sound(after, model(), [disk("b", 45)])


def test_a_route_that_streams_is_opened_again_as_it_was() -> None:
    """After a step that failed, on the same nodes: keys and values stay."""
    alone = place([disk("a", 45)], NO_LINKS, model(), DEMAND)
    assert moves(model()).recover(alone, [disk("a", 45)], held(alone), 100) == alone


def test_what_is_loaded_already_is_served_where_it_is() -> None:
    nodes = [disk("a", 45), disk("b", 45)]
    loaded = {"a": Residency((range(3),)), "b": Residency((range(3, 6),))}
    assert streaming(moves(model()).first(nodes, loaded)) == []


def test_a_node_that_comes_back_with_the_files_of_all_layers_streams_again() -> None:
    alone = [disk("a", 45)]
    first = moves(model()).first(alone, {"a": Residency((range(6),))})
    assert streaming(first) == ["a"]
    sound(first, model(), alone)
