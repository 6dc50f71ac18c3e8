"""The last day, minute by minute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.observed.history import SAMPLES, STEP
from shoal.telemetry.day import Day, percentile

START = 1_000_020.0  # the beginning of a minute


def test_minutes_are_told_with_their_tokens_and_extremes() -> None:
    day = Day(START)
    day.tokens(120, START + 1)
    day.first_token(0.5, START + 2)
    day.first_token(0.1, START + 3)
    day.sample(START + 4, queue=3, blocks=0.5, memory=10, nodes=2)
    day.sample(START + 5, queue=1, blocks=0.25, memory=20, nodes=1)
    day.tokens(30, START + STEP + 1)
    told = day.history(START + STEP + 10)
    assert told.at == [START, START + STEP]
    assert told.tokens_per_second == [pytest.approx(2.0), pytest.approx(3.0)]
    assert (told.first_p50, told.first_p99) == ([0.1, None], [0.5, None])
    assert (told.queue, told.blocks, told.memory, told.nodes) == ([3, 0], [0.5, 0.0], [20, 0], [1, 0])


def test_a_minute_that_began_late_counts_what_there_was_of_it() -> None:
    day = Day(START + 50)
    day.tokens(40, START + 55)
    assert day.history(START + 60 - 1e-6).tokens_per_second == [pytest.approx(4.0)]


def test_a_day_is_kept_and_no_more() -> None:
    day = Day(START)
    for minute in range(SAMPLES + 10):
        day.tokens(1, START + minute * STEP)
    told = day.history(START + (SAMPLES + 9) * STEP)
    assert len(told.at) == SAMPLES and told.at[0] == START + 10 * STEP


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)
