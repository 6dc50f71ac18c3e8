"""What is held and what is read: of experts, of layers, and of layers that are all alike, which cost what one of them costs times their number."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.cost import ExpertsCost, LayerCost, Matrices
from shoal.placement.partition import Costs
from shoal.placement.profile import Demand
from tests.support.nodes import MB, experts, layers, matrices, model, models, node

ROWS = st.integers(1, 4096)
NEARLY = 1 + 1e-9


@given(experts(), ROWS, ROWS)
def test_more_rows_touch_no_fewer_experts(some: ExpertsCost, rows: int, more: int):
    assert some.touched(rows) <= some.touched(rows + more) * NEARLY


@given(experts(), ROWS)
def test_as_many_experts_are_touched_as_one_row_chooses_up_to_all(some: ExpertsCost, rows: int):
    assert some.chosen <= some.touched(rows) * NEARLY
    assert some.touched(rows) <= min(some.count, rows * some.chosen) * NEARLY


@given(experts())
def test_one_row_touches_those_that_it_chooses(some: ExpertsCost):
    assert some.touched(1) == pytest.approx(some.chosen)
    assert some.touched(0) == 0


@given(st.integers(1, 256), ROWS)
def test_if_all_are_chosen_all_are_touched(count: int, rows: int):
    assert ExpertsCost(count, count, Matrices(1, 1)).touched(rows) == count


@pytest.mark.parametrize(("count", "chosen", "rows"), [(8, 2, 1), (8, 2, 4), (64, 6, 8), (128, 8, 32)])
def test_what_is_expected_is_what_random_routing_does(count: int, chosen: int, rows: int):
    rng, times = random.Random(1), 2000
    touched = sum(len({e for _ in range(rows) for e in rng.sample(range(count), chosen)}) for _ in range(times))
    assert ExpertsCost(count, chosen, Matrices(1, 1)).touched(rows) == pytest.approx(touched / times, rel=0.02)


@pytest.mark.parametrize(("count", "chosen"), [(8, 0), (8, 9), (0, 0)])
def test_experts_that_cannot_be_chosen_are_refused(count: int, chosen: int):
    with pytest.raises(ValueError, match="cannot be chosen"):
        ExpertsCost(count, chosen, Matrices(1, 1))


@given(layers(), ROWS)
def test_no_layer_reads_more_than_it_holds_or_less_than_one_row_needs(layer: LayerCost, rows: int):
    assert layer.always.size <= layer.read_bytes(1) <= layer.read_bytes(rows) * NEARLY <= layer.held_bytes * NEARLY**2


@given(layers(), ROWS)
def test_operations_grow_with_the_rows_and_the_chosen_experts(layer: LayerCost, rows: int):
    each = layer.experts.chosen * layer.experts.each.parameters if layer.experts else 0
    assert layer.flops(rows) == rows * layer.flops(1) == 2 * rows * (layer.always.parameters + each)


@given(layers(), st.integers(0, 10_000))
def test_a_row_reads_the_keys_and_values_in_its_window(layer: LayerCost, context: int):
    seen = context if not layer.window else min(context, layer.window)
    assert layer.kv_read(context) == layer.kv_bytes * seen


def test_all_of_the_experts_are_held_and_the_chosen_ones_are_read():
    layer = LayerCost(Matrices(100, 100), 64, 1, experts=ExpertsCost(8, 2, Matrices(10, 20)))
    assert (layer.held_bytes, layer.read_bytes(1), layer.flops(1)) == (180, 120, 2 * 140)
    assert layer.read_bytes(1000) == pytest.approx(180)


@given(models(6), st.integers(1, 32))
def test_a_model_reads_what_its_stages_read(model, rows: int):
    count = len(model.layers)
    parts = [model.read_bytes(i, i + 1, rows) for i in range(count)]
    assert model.read_bytes(0, count, rows) == pytest.approx(sum(parts))
    assert parts[-1] == pytest.approx(model.layers[-1].read_bytes(rows) + model.head.size)
    assert model.held_bytes >= model.read_bytes(0, count, rows) / NEARLY


@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(1, n))),
    st.integers(1, 100 * MB),
    matrices(100 * MB),
    st.integers(1, 4096),
    st.builds(Demand, st.integers(1, 64), st.just(4096), st.just(256), st.integers(0, 4096)),
    st.integers(1, 4),
    st.sampled_from([1e9, 3e10]),
    st.sampled_from([1e10, 1e13]),
)
def test_equal_layers_cost_what_one_costs_times_their_number(
    part: tuple[int, int, int], layer: int, head: Matrices, kv: int, demand: Demand, stages: int, speed: float, flops: float
):
    """To the last bit, so that no placement of a dense model depends on how its costs are summed."""
    layers, first, end = part[0], min(part[1:]), max(part[1:])
    cost = model(layers, layer, head.size, kv)
    costs, rows, last = Costs(cost, demand, stages), max(1, demand.slots // stages), end == layers
    weights = (end - first) * layer + last * head.size
    assert costs.weights(first, end) == weights
    assert costs.memory(first, end, 512) == weights + (end - first) * kv * 512 + MB
    operations = 2.0 * ((end - first) * layer + last * head.size) * rows
    read = weights + (end - first) * kv * demand.context * rows
    here = node("a", speed=speed, flops=flops)
    assert costs.seconds(here, first, end) == max(read / speed, operations / flops)
    assert costs.prefill_seconds(here, first, end) == 2.0 * (end - first) * layer / flops


@pytest.mark.parametrize("popularity", [(), (1.0, 0.5, 0.3, 0.2)])
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_the_rows_of_a_step_are_spread_over_the_experts(rows: int, popularity: tuple[float, ...]):
    """Every row chooses two, and the experts that get any are those that are touched."""
    experts = ExpertsCost(4, 2, Matrices(10, 20), popularity)
    spread = experts.spread(rows)
    assert sum(n * count for n, count in spread.items()) == pytest.approx(2 * rows)
    assert sum(spread.values()) == pytest.approx(experts.touched(rows), abs=1e-4)
    assert max(spread) <= rows
