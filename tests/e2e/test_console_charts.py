"""What the console's charts say in figures: drawn on canvases, where no text is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from time import time
from typing import NamedTuple

import msgspec
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import Visitor
from tests.support.cluster import until
from tests.support.console_format import duration
from tests.support.engine import FakeEngine
from tests.support.operator import FakeOperator, furnished, history
from tests.support.served_console import served_console

pytestmark = [pytest.mark.slow, pytest.mark.real]

REQUEST = "chatcmpl-4f7e21"
UNITS = {"": 1, "µs": 1e-6, "ms": 1e-3, "s": 1, "B": 1, "MiB": 2**20, "GiB": 2**30, "k": 1e3}


class Drawn(NamedTuple):
    """A text, and where it is on its canvas, in pixels."""

    text: str
    x: float
    y: float

    @property
    def value(self) -> float:
        number, _, unit = self.text.partition(" ")
        return float(number) * UNITS[unit]

    @property
    def rounding(self) -> float:
        """How far the value may be from what it stands for."""
        number, _, unit = self.text.partition(" ")
        return 0.5 * 10.0 ** -len(number.partition(".")[2]) * UNITS[unit]


@pytest.fixture
def operator() -> FakeOperator:
    made = furnished()
    made.day = history(time())
    return made


@pytest.fixture
def page(browser: Browser, operator: FakeOperator, tmp_path: Path) -> Iterator[Page]:
    """One whose canvases know what was last written on them."""
    with served_console(tmp_path, operator, FakeEngine()) as url:
        visitor = Visitor(browser, url)
        page = visitor.open("connect")
        page.evaluate(
            """() => {
                const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
                CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
                    const { a, d, e, f } = this.getTransform();
                    (this.canvas.drawn ??= []).push([text, a * x + e, d * y + f]);
                    fillText.call(this, text, x, y);
                };
                CanvasRenderingContext2D.prototype.clearRect = function (...box) { this.canvas.drawn = []; clearRect.apply(this, box); };
            }"""
        )
        yield page
        page.context.close()
    visitor.check()


def drawn(page: Page, canvas: str) -> list[Drawn]:
    return [Drawn(*each) for each in page.locator(canvas).evaluate("canvas => canvas.drawn ?? []")]


def test_an_interruptions_figures_are_drawn_whole_or_not_at_all(page: Page, operator: FakeOperator) -> None:
    page.evaluate(f"location.hash = '#/timeline/{REQUEST}'")
    expect(page.locator(".step-table")).to_have_attribute("data-step", "240")
    page.get_by_role("button", name="All").click()
    (recovery,) = operator.timelines[REQUEST].recoveries
    wide = [name for name, took in recovery.parts.items() if took > 0.3]
    assert len(wide) == 2

    def told() -> list[str]:
        return [each.text for each in drawn(page, ".chart canvas") if each.text.startswith(tuple(recovery.parts))]

    until(lambda: told() == wide, lambda: f"{told()} are not names without figures, for which there is no room")
    for _ in range(3):
        page.get_by_role("application").press("+")
    figures = [f"{name} {duration(recovery.parts[name])}" for name in wide]
    until(lambda: told() == figures, lambda: f"{told()} are not {figures}")


def test_the_timelines_axis_is_in_seconds_since_the_first_step(page: Page, operator: FakeOperator) -> None:
    page.evaluate(f"location.hash = '#/timeline/{REQUEST}'")
    expect(page.locator(".step-table")).to_have_attribute("data-step", "240")
    page.get_by_role("button", name="All").click()
    steps = operator.timelines[REQUEST].steps
    last = steps[-1]
    in_stages = sum(sum(msgspec.structs.astuple(stage)) for stage in last.stages)
    end = last.at - steps[0].at + last.schedule + last.encode + last.send + in_stages + last.back + last.apply
    width = page.locator(".chart canvas").evaluate("canvas => canvas.clientWidth")
    lanes = min(104, width * 0.28)
    pixel = (end * 1.04 + 0.01) / (width - lanes)  # seconds, where all is in sight

    def labels() -> list[Drawn]:
        return [each for each in drawn(page, ".chart canvas") if each.y == 12]

    def at(each: Drawn) -> float:
        return (each.x - 4 - lanes) * pixel - 0.02 * end

    until(
        lambda: len(labels()) > 4 and all(abs(at(each) - each.value) < pixel for each in labels()),
        lambda: f"{labels()}, {pixel:g} s a pixel",
    )

    def even(pixel: float, unit: str) -> bool:
        first, *others = labels()
        apart = [(each.value - first.value) / (each.x - first.x) for each in others]
        return len(apart) > 1 and apart == pytest.approx([pixel] * len(apart), rel=0.01) and first.text.endswith(f" {unit}")

    for times, unit in ((9, "s"), (5, "ms")):
        for _ in range(times):
            page.get_by_role("button", name="Zoom in").click()
        pixel /= 2**times
        until(partial(even, pixel, unit), lambda: str(labels()))


@pytest.mark.parametrize("series", ["tokens_per_second", "first", "queue", "memory"])
def test_the_days_axes_are_those_of_its_figures(page: Page, operator: FakeOperator, series: str) -> None:
    page.evaluate("location.hash = '#/events'")
    expect(page.locator("[data-series] canvas")).to_have_count(4)
    day = operator.day
    assert day is not None
    values = day.first_p99 if series == "first" else getattr(day, series)
    most = 1.1 * max(value for value in values if value is not None)
    canvas = f'[data-series="{series}"] canvas'
    until(lambda: drawn(page, canvas))
    left, top, width, height = page.locator(canvas).evaluate(
        """canvas => {
            const plot = canvas.closest("figure").querySelector(".u-over").getBoundingClientRect(), all = canvas.getBoundingClientRect();
            return [plot.left - all.left, plot.top - all.top, plot.width, plot.height];
        }"""
    )
    times = [each for each in drawn(page, canvas) if ":" in each.text]
    scale = [each for each in drawn(page, canvas) if ":" not in each.text]
    assert len(times) > 3 and len(scale) > 1
    second = width / (day.at[-1] - day.at[0])
    for each in times:
        at = datetime.fromtimestamp(day.at[0] + (each.x - left) / second)
        late = (at - datetime.strptime(each.text, "%H:%M").replace(at.year, at.month, at.day)).total_seconds()
        assert abs((late + 43_200) % 86_400 - 43_200) < 1.5 / second
    for each in scale:
        assert abs((top + height - each.y) / height * most - each.value) < 1.5 * most / height + each.rounding
