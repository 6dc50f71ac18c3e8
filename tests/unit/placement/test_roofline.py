"""The hierarchical roofline: its three roofs, and the points where one takes over from another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.roofline import Roof, attainable, balance_point, busy, first_turning_point, second_turning_point

SPEED, PACE, INTENSITY = st.floats(1e9, 1e15), st.floats(1e8, 1e13), st.floats(1e-3, 1e6)
L4 = Roof(104e12, 306e9)
XEON = Roof(1.6e12, 81.6e9)
PCIE = 17.18e9


@given(SPEED, PACE, PACE, INTENSITY, INTENSITY)
def test_the_lowest_roof_holds(flops: float, pace: float, link: float, own: float, other: float):
    reached = attainable(Roof(flops, pace), link, own, other)
    roofs = (flops, pace * own, link * other)
    assert reached in roofs
    assert all(reached <= roof for roof in roofs)


@given(SPEED, PACE, st.floats(1, 1e12), st.floats(1, 1e15))
def test_a_computation_takes_its_operations_over_what_is_attainable(speed: float, pace: float, size: float, flops: float):
    found = busy(size, flops, pace, speed)
    assert found.seconds == pytest.approx(flops / Roof(speed, pace).attainable(flops / size))
    assert (found.memory > 0) != (found.arithmetic > 0)


@given(SPEED, PACE, PACE, INTENSITY)
def test_below_the_first_turning_point_the_link_is_slower_than_the_device_below_it(flops: float, pace: float, link: float, other: float):
    lower = Roof(flops, pace)
    point = first_turning_point(lower, link, other)
    assert (other < point) == (link * other < lower.attainable(other)) or other == pytest.approx(point)


@given(SPEED, PACE, PACE, INTENSITY, INTENSITY)
def test_below_the_second_turning_point_the_link_is_the_limit(flops: float, pace: float, link: float, own: float, other: float):
    upper, point = Roof(flops, pace), second_turning_point(Roof(flops, pace), link, own)
    reached = attainable(upper, link, own, other)
    assert reached == pytest.approx(link * other if other < point else upper.attainable(own))


@given(SPEED, PACE, PACE, INTENSITY)
def test_at_the_balance_point_link_and_memory_are_equally_slow(flops: float, pace: float, link: float, own: float):
    point = balance_point(Roof(flops, pace), link, own)
    assert link * point == pytest.approx(pace * own)


def test_attention_on_an_l4_is_better_left_to_the_processor():
    """MoE-Lightning's figure 4: Mixtral's attention does 4 operations for each 16-bit number of the cache, for its 4 query heads per
    KV head; the intensity lies below P1 for 16 bits and for 4."""
    for bits in (16, 4):
        intensity = 4 * 4096 / (2 * 1024 * bits / 8)
        assert intensity < first_turning_point(XEON, PCIE, intensity)


def test_with_few_tokens_mixtral_is_better_left_to_the_processor_and_with_many_it_is_not():
    """Figure 5: below P1 nothing is gained by moving weights; at thousands of tokens per pass the link is no longer the limit."""

    def intensity(tokens: float) -> float:
        return 2 * tokens * 2 / 8 / 2  # of 8 experts, in 16 bits

    assert intensity(16) < first_turning_point(XEON, PCIE, intensity(16))
    assert intensity(1000) > first_turning_point(XEON, PCIE, intensity(1000))
    own = intensity(128)
    p2 = second_turning_point(L4, PCIE, own)
    assert p2 == pytest.approx(balance_point(L4, PCIE, own))  # of 128 tokens, the GPU's memory is the limit
    tokens = p2 * 8 * 2 / (2 * 2)
    assert tokens == pytest.approx(128 * 306 / 17.18, rel=1e-6)
