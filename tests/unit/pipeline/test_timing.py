"""What steps cost."""

from __future__ import annotations

from shoal.pipeline.timing import StepTiming, Timings
from shoal.scheduler.plan import StageTrace


def timing(rows: int = 1, sampled: int = 1, flight: float = 10.0, stages: int = 2) -> StepTiming:
    return StepTiming(rows, sampled, 1.0, 1.0, 1.0, flight, 1.0, (StageTrace(0.5, 0.5, 2.0, 0.5, 0.5),) * stages)


def test_a_steps_time_adds_up():
    one = timing()
    assert (one.in_stages, one.hops) == (8.0, 2.0)
    assert one.overhead == (4 + 10 - 6) / 3
    assert timing(flight=5.0).hops == 0


def test_a_summary_is_of_steps_that_sampled():
    timings = Timings(keep=3)
    assert timings.summary() == {}
    for rows in (1, 1, 4, 4):
        timings.add(timing(rows))
    timings.add(timing(9, sampled=0))
    assert (timings.summary()["steps"], timings.summary(rows=4)["rows"]) == (2, 4)
    timings.clear()
    assert timings.summary() == {}
