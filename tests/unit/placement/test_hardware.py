"""Machines: curves between measured points, and what is no machine."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.hardware import Curve, Device, Hardware, Tier, TierLink, precision
from tests.support.plans import curve

CPU = Device("processor", 0, 1e9, (("bf16", curve((1, 1e9))),))


def test_a_curve_goes_through_its_points_and_between_them_by_the_logarithm():
    speeds = curve((1, 100), (4, 300), (64, 500))
    assert [speeds.at(rows) for rows in (1, 4, 64)] == [100, 300, 500]
    assert speeds.at(2) == pytest.approx(200)
    assert speeds.at(16) == pytest.approx(400)
    assert speeds.at(4 * sqrt(2)) == pytest.approx(325)


def test_outside_of_a_curve_its_ends_hold():
    speeds = curve((2, 100), (4, 300))
    assert (speeds.at(0.1), speeds.at(1000)) == (100, 300)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=8, unique=True).map(sorted), st.floats(0.5, 1e7), st.floats(0.5, 1e7))
def test_a_rising_curve_rises_everywhere(rows: list[float], a: float, b: float):
    speeds = Curve(tuple(rows), tuple(100.0 * (i + 1) for i in range(len(rows))))
    low, high = sorted((speeds.at(min(a, b)), speeds.at(max(a, b))))
    assert 100 <= low <= high <= 100 * len(rows)
    assert speeds.at(min(a, b)) == low or low == pytest.approx(high)


@pytest.mark.parametrize("points", [[], [(2, 1), (1, 1)], [(1, 1), (1, 2)], [(0, 1)], [(1, 0)]])
def test_what_is_no_curve_is_refused(points: list[tuple[float, float]]):
    with pytest.raises(ValueError, match="curve"):
        curve(*points)


@pytest.mark.parametrize(("bits", "kind"), [(1.6, "q4"), (4.5, "q4"), (5, "q4_1"), (6, "q4_1"), (8.5, "q8"), (16, "bf16"), (32, "fp32")])
def test_the_bits_of_a_weight_say_how_it_is_multiplied(bits: float, kind: str):
    assert precision(bits) == kind


def test_what_was_not_measured_counts_as_the_next_wider_then_as_the_next_narrower():
    device = Device("processor", 0, 1e9, (("q8", curve((1, 8))), ("fp32", curve((1, 32)))))
    assert [device.curve(kind).at(1) for kind in ("q4", "q8", "bf16", "fp32", "attention")] == [8, 8, 32, 32, 32]
    assert Device("processor", 0, 1e9, (("q4", curve((1, 4))),)).curve("fp32").at(1) == 4


def test_a_curve_of_attention_is_for_attention():
    device = Device("processor", 0, 1e9, (("bf16", curve((1, 16))), ("attention", curve((1, 1)))))
    assert device.curve("attention").at(1) == 1


@pytest.mark.parametrize(
    ("tiers", "links", "devices", "fault"),
    [
        ((), (), (CPU,), "links"),
        ((Tier("memory", 1),), (TierLink("disk", 1),), (CPU,), "links"),
        ((Tier("disk", 1), Tier("memory", 1)), (), (CPU,), "2 tiers have 1 links"),
        ((Tier("memory", 1),), (), (), "a device"),
        ((Tier("memory", 1),), (), (CPU, CPU), "same name"),
        ((Tier("memory", 1), Tier("memory", 1)), (TierLink("disk", 1),), (CPU,), "same name"),
        ((Tier("memory", 1),), (), (Device("GPU", 1, 1e9, CPU.curves),), "not there"),
    ],
)
def test_what_is_no_machine_is_refused(tiers: tuple[Tier, ...], links: tuple[TierLink, ...], devices: tuple[Device, ...], fault: str):
    with pytest.raises(ValueError, match=fault):
        Hardware("here", tiers, links, devices)


def test_parts_are_checked():
    with pytest.raises(ValueError, match="no room"):
        Tier("memory", 0)
    with pytest.raises(ValueError, match="link 'disk'"):
        TierLink("disk", 0)
    with pytest.raises(ValueError, match="no speed"):
        Device("processor", 0, 1e9, (("attention", curve((1, 1))),))
    with pytest.raises(ValueError, match="int4"):
        Device("processor", 0, 1e9, (("int4", curve((1, 1))), ("q4", curve((1, 1)))))
    with pytest.raises(ValueError, match="processor"):
        Device("processor", 0, 0, CPU.curves)
