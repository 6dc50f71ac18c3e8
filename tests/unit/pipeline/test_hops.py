"""Where a step's time between the machines went, though their clocks do not agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.pipeline.hops import WINDOW, HopClock
from shoal.pipeline.timing import StepTiming
from shoal.scheduler.plan import StageTrace

seconds = st.floats(0, 2, allow_nan=False)


def step(at: float, delays: list[float], offsets: list[float], work: float = 0.01, send: float = 0.0) -> StepTiming:
    """A step that was sent at `at`. delays: of each hop. offsets: of the stages' clocks to the head's."""
    now, traces = at - send, list[StageTrace]()
    for delay, offset in zip(delays, offsets, strict=False):
        now += delay
        traces.append(StageTrace(work, work, work, 0.0, work, now + offset))
        now += 4 * work
    now += delays[-1]
    return StepTiming(1, 1, 0.0, 0.0, send, now - at, 0.0, tuple(traces), sent=at)


def test_one_late_hop_is_found_whatever_the_clocks_say() -> None:
    clock = HopClock()
    for i in range(20):
        clock.split(step(100 + i * 0.1, [0.001] * 3, [5000.0, -3000.0]))
    first, second, back = clock.split(step(103, [0.001, 0.201, 0.001], [5000.0, -3000.0]))
    assert (first, second, back) == pytest.approx((0.001, 0.201, 0.001))


def test_a_step_that_arrives_before_its_sending_returns_is_late_nowhere_else() -> None:
    clock = HopClock()
    clock.split(step(100, [0.001] * 3, [7.0, 7.0], send=0.0))
    hops = clock.split(step(101, [0.001] * 3, [7.0, 7.0], send=0.02))
    assert sum(hops) == pytest.approx(step(101, [0.001] * 3, [7.0, 7.0], send=0.02).hops) and max(hops) <= 0.003


def test_clocks_that_drift_are_followed() -> None:
    clock, drift = HopClock(), 50e-6
    moments = [100 + i * 0.05 for i in range(2000)]
    split = [clock.split(step(at, [0.001] * 3, [10 + drift * (at - 100), -4 - drift * (at - 100)])) for at in moments]
    assert all(hop < 0.001 + 2 * 2 * WINDOW * drift for hops in split for hop in hops)


@given(
    st.integers(1, 4).flatmap(
        lambda stages: st.tuples(
            st.lists(st.lists(seconds, min_size=stages + 1, max_size=stages + 1), min_size=1, max_size=6),
            st.lists(st.floats(-1e6, 1e6), min_size=stages, max_size=stages),
        )
    ),
    st.floats(0, 0.5),
)
def test_together_they_are_what_is_left_of_the_flight(given: tuple[list[list[float]], list[float]], send: float) -> None:
    clock, (steps, offsets) = HopClock(), given
    for i, delays in enumerate(steps):
        timing = step(1000.0 + i, delays, offsets, send=min(send, delays[0]))
        hops = clock.split(timing)
        assert len(hops) == len(delays) and all(hop >= 0 for hop in hops)
        assert sum(hops) == pytest.approx(timing.hops, abs=1e-6)


def test_stages_that_do_not_say_when_a_step_came_share_its_hops() -> None:
    timing = StepTiming(1, 1, 0, 0, 0, 1.0, 0, (StageTrace(0, 0, 0.4, 0, 0), StageTrace(0, 0, 0.3, 0, 0)), sent=5.0)
    assert HopClock().split(timing) == pytest.approx((0.1, 0.1, 0.1))
