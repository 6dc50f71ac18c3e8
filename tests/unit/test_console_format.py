"""The formatter with which tests read the console, by the cases that the console's own is tested with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import console_format

CASES: dict[str, list[tuple[list[Any], str]]] = json.loads(
    (Path(__file__).parents[2] / "console" / "src" / "parts" / "format_cases.json").read_text()
)
OTHER_NAMES = {"bytes": "size", "seconds": "duration"}
"""Python has the console's names for something else."""


@pytest.mark.parametrize("name", CASES)
def test_figures_are_written_as_the_console_is_to_write_them(name: str) -> None:
    written: Callable[..., str] = getattr(console_format, OTHER_NAMES.get(name, name))
    assert [written(*values) for values, _ in CASES[name]] == [text for _, text in CASES[name]]


@given(st.floats(1e-9, 59.94))
def test_a_duration_has_at_most_three_figures_and_keeps_its_size(seconds: float) -> None:
    number, unit = console_format.duration(seconds).split()
    assert float(number) < 1000
    scale = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    digits = len(number.partition(".")[2])
    assert abs(float(number) * scale - seconds) <= 0.5 * 10**-digits * scale * (1 + 1e-9)


@given(st.floats(0, 1e11))
def test_a_short_figure_keeps_its_size(value: float) -> None:
    text = console_format.short(value)
    found = re.fullmatch(r"([\d.]+)(?: ([kMG]))?", text)
    assert found is not None, text
    told = float(found[1]) * {None: 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]]
    assert told == pytest.approx(value, rel=0.06, abs=0.005)


@given(st.integers(0, 4_000_000_000))
def test_a_moment_ends_with_its_time_of_day(at: int) -> None:
    assert console_format.moment(at + 0.7).endswith(console_format.clock(at))
    assert datetime.strptime(console_format.moment(at), "%Y-%m-%d %H:%M:%S").strftime("%H:%M:%S") == console_format.clock(at)
