"""How a stage's weights share its memory: never more than there is, and as much of it as is of use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import NotEnoughMemory
from shoal.placement.cost import ModelCost
from shoal.placement.division import RING, StageSizes, divide, least
from tests.support.nodes import MB, models


@st.composite
def stages(draw: st.DrawFn) -> StageSizes:
    """Dense layers and layers with experts, of unequal sizes, from any layer on."""
    first, count = draw(st.integers(0, 50)), draw(st.integers(1, 24))
    layers = range(first, first + count)
    constant = {layer: draw(st.integers(1, 100)) for layer in layers}
    routed = [layer for layer in layers if draw(st.booleans())]
    experts = {layer: draw(st.integers(1, 16)) for layer in routed}
    return StageSizes(
        constant,
        {layer: draw(st.integers(1, 60)) for layer in routed},
        experts,
        draw(st.integers(1, max(experts.values()))) if experts else 0,
        draw(st.integers(0, 200)),
    )


def equal(layers: int = 8, constant: int = 10, experts: int = 0, each: int = 0, chosen: int = 2, head: int = 5) -> StageSizes:
    routed = range(layers) if experts else range(0)
    return StageSizes(dict.fromkeys(range(layers), constant), dict.fromkeys(routed, each), dict.fromkeys(routed, experts), chosen, head)


rooms = st.integers(0, 40_000)


def every(sizes: StageSizes) -> int:
    """Bytes with which all is held, each expert in a place of the largest one's size."""
    return sizes.head + sum(sizes.constant.values()) + sizes.slot * sum(sizes.experts.values())


def taken(sizes: StageSizes, held: frozenset[int], slots: int) -> int:
    """What is in memory, counted by its parts: those held, a ring for the others, places for experts."""
    streamed = [size for layer, size in sizes.constant.items() if layer not in held]
    ring = RING * max(streamed, default=0)
    return sizes.head + sum(sizes.constant[layer] for layer in held) + ring + slots * sizes.slot


@given(stages(), rooms)
def test_never_more_than_there_is(sizes: StageSizes, beyond: int) -> None:
    memory = least(sizes) + beyond
    division = divide(sizes, memory)
    assert division.held <= sizes.constant.keys()
    assert taken(sizes, division.held, division.slots) <= division.nbytes <= memory


@given(stages())
def test_the_least_is_enough_and_a_byte_less_is_refused(sizes: StageSizes) -> None:
    division = divide(sizes, least(sizes))
    if sizes.experts:
        assert division.slots >= min(sizes.chosen, sum(sizes.experts.values()))
    with pytest.raises(NotEnoughMemory) as error:
        divide(sizes, least(sizes) - 1)
    assert (error.value.needed, error.value.available) == (least(sizes), least(sizes) - 1)


@given(stages())
def test_the_least_is_at_most_all(sizes: StageSizes) -> None:
    assert least(sizes) <= every(sizes)


@given(stages(), rooms, rooms)
def test_more_memory_holds_no_less(sizes: StageSizes, beyond: int, more: int) -> None:
    """Of what every step reads, no fewer bytes, up to what a ring for fewer layers costs; and never more experts at its expense."""
    little, much = (divide(sizes, least(sizes) + room) for room in (beyond, beyond + more))
    assert len(much.held) >= len(little.held)
    if len(much.held) == len(little.held):
        assert much.slots >= little.slots
    if len(little.held) == len(sizes.constant):
        assert much.missed(sizes) <= little.missed(sizes)


@given(stages())
def test_with_room_for_all_nothing_is_read(sizes: StageSizes) -> None:
    division = divide(sizes, every(sizes))
    assert division.held == sizes.constant.keys()
    assert division.slots == sum(sizes.experts.values())
    assert (division.streamed(sizes), division.missed(sizes)) == (0, 0)


@given(stages(), rooms)
def test_places_for_experts_come_after_what_every_step_reads(sizes: StageSizes, beyond: int) -> None:
    division = divide(sizes, least(sizes) + beyond)
    if division.held != sizes.constant.keys() and sizes.experts:
        whole = sizes.head + sum(sizes.constant.values())
        few = max(2, sizes.chosen)
        assert whole + min(few, sum(sizes.experts.values())) * sizes.slot > least(sizes) + beyond


@given(stages(), rooms)
def test_no_room_is_left_that_an_expert_would_fit_into(sizes: StageSizes, beyond: int) -> None:
    memory = least(sizes) + beyond
    division = divide(sizes, memory)
    if division.slots < sum(sizes.experts.values()):
        assert memory - division.nbytes < sizes.slot


@pytest.mark.parametrize(("layers", "streamed"), [(8, 3), (8, 4), (9, 3), (30, 7), (30, 29), (30, 30)])
def test_streamed_layers_lie_far_apart(layers: int, streamed: int) -> None:
    """So that one is read while several run: between two of them are as many held ones as can be, give or take one."""
    sizes = equal(layers)
    division = divide(sizes, sizes.head + (RING + layers - streamed) * 10)
    away = sorted(sizes.constant.keys() - division.held)
    gaps = [b - a for a, b in zip(away, [*away[1:], away[0] + layers], strict=True)]
    assert len(away) == streamed
    assert max(gaps) - min(gaps) <= 1


def test_what_a_step_reads() -> None:
    sizes = equal(8)
    memory = sizes.head + 10 * (RING + 4)
    assert divide(sizes, memory).streamed(sizes) == 4 * 10
    assert divide(sizes, memory + 20).streamed(sizes) == 0, "two that are left stay in the ring"


def test_which_experts_are_missed() -> None:
    sizes = equal(4, experts=8, each=3)
    memory = sizes.head + 40 + 8 * 3
    assert divide(sizes, memory).slots == 8
    assert divide(sizes, memory).missed(sizes) == 0.75
    assert divide(sizes, memory + 1000).missed(sizes) == 0


def test_a_model_without_experts_misses_none() -> None:
    assert divide(equal(), least(equal())).missed(equal()) == 0


@given(models(6), st.data())
def test_what_is_expected_of_a_model_is_what_it_holds(model: ModelCost, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(model.layers) - 1))
    end = data.draw(st.integers(first + 1, len(model.layers)))
    sizes = StageSizes.of(model, first, end)
    assert list(sizes.constant) == list(range(first, end))
    assert sizes.total == sum(layer.held_bytes for layer in model.layers[first:end]) + (model.head.size if end == len(model.layers) else 0)
    assert sizes.total <= every(sizes)
    assert least(sizes) <= every(sizes) <= len(model.layers) * 200 * MB
