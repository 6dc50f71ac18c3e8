"""Charts of made-up spans."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from shoal.placement import chart
from shoal.placement.timeline import WAITING, Span

SPANS = [
    Span("disk", "experts", 0, 1.0, 1.5),
    Span("disk", "experts", 1, 1.25, 1.75),
    Span("processor", "attention", 0, 1.0, 1.25),
    Span("processor", WAITING, 0, 1.25, 1.5),
    Span("processor", "experts", 0, 1.5, 2.0),
    Span("processor", "ends & <head>", -1, 2.0, 3.0),
]
SVG = "{http://www.w3.org/2000/svg}"
any_span = st.builds(
    lambda resource, what, layer, began, lasts: Span(resource, what, layer, began, began + lasts),
    st.sampled_from(["disk", "processor", "gpu"]),
    st.sampled_from(["experts", "attention", "head", WAITING, "", "é"]),
    st.integers(-1, 3),
    st.floats(0, 10),
    st.floats(0, 2),
)


def test_a_line_of_text_for_each_resource():
    assert chart.text(SPANS, width=16).splitlines() == [
        "disk      eeeeee··········  38%",
        "processor aa··eeeennnnnnnn  88%",
        "          0         2.00 s",
        "e disk, experts: 38%",
        "a processor, attention: 12%",
        "· processor, waiting: 12%",
        "e processor, experts: 25%",
        "n processor, ends & <head>: 50%",
    ]
    assert chart.text([]) == ""


def test_short_things_are_said_in_milliseconds():
    assert "0    2.0 ms" in chart.text([Span("disk", "experts", 0, 0.0, 0.002)], width=11)


def bars(image: str) -> list[ElementTree.Element]:
    return [bar for bar in ElementTree.fromstring(image).iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]


def test_an_image_has_a_bar_for_each_span_and_says_what_it_is():
    image = chart.svg(SPANS)
    titles = [bar.findtext(f"{SVG}title") for bar in bars(image)]
    assert titles == [
        "experts of layer 0, 500.0 ms",
        "experts of layer 1, 500.0 ms",
        "attention of layer 0, 250.0 ms",
        "experts of layer 0, 500.0 ms",
        "ends & <head>, 1.00 s",
    ]
    words = [element.text for element in ElementTree.fromstring(image).iter(f"{SVG}text")]
    assert words == ["disk 38%", "processor 88%", "0", "2.00 s", "experts", "attention", "ends & <head>"]


@given(st.lists(any_span, max_size=30), st.integers(1, 120))
def test_any_spans_can_be_drawn(spans: list[Span], width: int):
    lines = chart.text(spans, width).splitlines()
    resources = {span.resource for span in spans}
    assert all(len(line) == len(lines[0]) for line in lines[: len(resources)])
    by_row: dict[str, list[tuple[float, float]]] = {}
    for bar in bars(chart.svg(spans)):
        x, wide = float(bar.attrib["x"]), float(bar.attrib["width"])
        by_row.setdefault(bar.attrib["y"], []).append((x, x + wide))
    for row in by_row.values():
        assert all(a[1] <= b[0] + 0.02 for a, b in pairwise(sorted(row)))
