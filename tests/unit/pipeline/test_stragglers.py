"""A stage that is slower than promised is seen, once it is sure; noise and uncertainty are not."""

from __future__ import annotations

import pytest

from shoal.pipeline.stragglers import StragglerDetector
from shoal.pipeline.timing import StepTiming
from shoal.scheduler.plan import StageTrace


def feed(pace: StragglerDetector, *computes: float, steps: int = 20, rows: int = 1, sampled: int = 1) -> None:
    traces = tuple(StageTrace(0, 0, compute, 0, 0) for compute in computes)
    for _ in range(steps):
        pace.add(StepTiming(rows, sampled, 0, 0, 0, 1, 0, traces))


def alike(rows: int) -> tuple[float, float]:
    return 1.0, 1.0


def judged(pace: StragglerDetector, *rounds: tuple[float, ...]) -> list[float] | None:
    out = None
    for computes in rounds:
        feed(pace, *computes)
        out = pace.judge(2, alike)
    return out


def test_the_best_stage_is_the_measure_of_the_others():
    assert judged(StragglerDetector(), *[(2.0, 6.0)] * 3) == [1.0, 3.0]


def test_what_was_promised_counts():
    pace, found = StragglerDetector(), list[float]()
    for _ in range(3):
        feed(pace, 1.0, 3.0)
        found = pace.judge(2, lambda rows: (1.0, 3.0))
    assert found == [1.0, 1.0]


def test_what_was_promised_may_depend_on_the_rows():
    """A stage of experts reads more for each row, one of dense layers does not."""
    pace, found = StragglerDetector(), list[float]()
    for _ in range(3):
        feed(pace, 1.0, 1.0, steps=10)
        feed(pace, 1.0, 4.0, steps=30, rows=4)
        found = pace.judge(2, lambda rows: (1.0, float(rows)))
    assert found == [1.0, 1.0]


def test_the_mildest_of_three_judgements_counts():
    assert judged(StragglerDetector(), (1.0, 5.0), (1.0, 1.2), (1.0, 5.0)) == [1.0, 1.2]


def test_it_is_not_sure_at_once():
    assert judged(StragglerDetector(), (1.0, 5.0), (1.0, 5.0)) is None


@pytest.mark.parametrize("other", [{"steps": 19}, {"rows": 9}, {"sampled": 0}])
def test_too_few_steps_or_steps_of_another_kind_say_nothing(other: dict[str, int]):
    pace = StragglerDetector()
    for _ in range(5):
        feed(pace, 1.0, 5.0, **other)
        assert pace.judge(2, alike) is None
        pace._steps.clear()


def test_steps_of_a_route_with_other_stages_are_left_out():
    pace = StragglerDetector()
    for _ in range(5):
        feed(pace, 1.0, 1.0, 9.0)
        assert pace.judge(2, alike) is None


def test_one_stage_alone_has_nothing_to_be_slower_than():
    pace = StragglerDetector()
    for _ in range(5):
        feed(pace, 4.0)
        assert pace.judge(1, lambda rows: (1.0,)) is None
