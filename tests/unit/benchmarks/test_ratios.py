"""The figure of predictions."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.ratios import Point, drawn, error

POINTS = [Point("dense", 1.0, 0.010, 0.011), Point("small", 0.5, 0.200, 0.100), Point("small", 1.0, 0.050, 0.050)]


def test_the_error_is_that_of_the_middle_one() -> None:
    assert error(POINTS) == pytest.approx(1 / 11)


def test_every_step_is_a_point_and_the_streamed_ones_are_hollow() -> None:
    figure = ElementTree.fromstring(drawn(POINTS, "a <title> & more"))
    circles = [circle.attrib for circle in figure.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(circles) == len(POINTS) + 2  # and the key
    assert [circle["fill"] == "none" for circle in circles[:3]] == [False, True, False]
