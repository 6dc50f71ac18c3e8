from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.node.load_watch import WINDOW, LoadWatch


def test_what_arrives_and_how_long_it_takes_a_slot() -> None:
    watch = LoadWatch()
    watch.look(0.0, 0, 0)
    for second in range(1, 61):  # two a second, each of which takes a slot for three seconds
        watch.arrived += 2
        watch.entered += 2
        inside = 2 * min(second, 3)
        watch.look(float(second), inside, inside)
    assert watch.per_second == 2.0
    assert watch.slot_seconds == pytest.approx(3.0, rel=0.1)


def test_what_was_refused_counts_as_asked_for_alone() -> None:
    watch = LoadWatch()
    watch.look(0.0, 1, 1)
    watch.arrived += 100
    watch.look(20.0, 1, 1)
    assert watch.per_second == 5.0 and watch.slot_seconds == 0.0, "nothing has ended"


def test_first_tokens_of_the_last_minute_count() -> None:
    watch = LoadWatch()
    assert watch.first_token_p95 is None
    for i in range(100):
        watch.first_token(0.0, float(i))
    watch.look(1.0, 0, 0)
    assert watch.first_token_p95 == 94.0
    watch.look(WINDOW + 1, 0, 0)
    assert watch.first_token_p95 is None


def test_a_model_that_was_not_looked_at_twice_has_no_rate() -> None:
    watch = LoadWatch()
    watch.arrived = 5
    assert watch.per_second == 0.0
    watch.look(0.0, 0, 0)
    assert watch.per_second == 0.0
    watch.arrived = 8
    watch.look(1.0, 0, 0)
    assert watch.per_second == 0.2, "the first seconds are no rate"


@given(st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 50)), min_size=2, max_size=60))
def test_a_rate_is_that_of_no_more_than_two_windows_and_never_negative(steps: list[tuple[float, int]]) -> None:
    watch, now = LoadWatch(), 0.0
    moments = [(0.0, 0)]
    watch.look(now, 0, 0)
    for seconds, count in steps:
        now += seconds
        watch.arrived += count
        moments.append((now, watch.arrived))
        watch.look(now, 0, 0)
    before = max((moment for moment in moments if moment[0] <= now - WINDOW), default=moments[0])
    assert watch.per_second == pytest.approx((watch.arrived - before[1]) / max(now - before[0], 15.0))
    assert len(watch._counts) <= len(moments) and watch.slot_seconds >= 0
