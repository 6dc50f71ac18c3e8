"""Timelines become a profile whose parts are the whole."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.observed.requests import StepSpan
from shoal.profiling.profile import covered, decodes, profiled
from shoal.profiling.slices import HEAD, Run, merged, slices
from tests.support.timelines import any_steps, step, timeline

CLOCK = 1e-5  # what is lost of a moment since 1970 in a float, with some room


@given(any_steps())
def test_shares_are_the_whole_and_nothing_is_negative(steps: list[StepSpan]):
    made = profiled(merged([timeline(*steps)]), "m", 1)
    assert all(part.seconds >= 0 and 0 <= part.share <= 1 for part in made.parts)
    whole = sum(part.seconds for part in made.parts)
    assert sum(part.share for part in made.parts) == pytest.approx(1 if whole else 0)
    assert made.wall >= 0 and 0 <= made.idle <= made.wall
    for stage in made.stages:
        assert min(stage.busy, stage.bubble, stage.idle, stage.compute, stage.wait) >= 0
        assert stage.busy + stage.bubble + stage.idle == pytest.approx(made.wall, abs=CLOCK)


@given(any_steps(3))
def test_slices_of_a_step_follow_one_another(steps: list[StepSpan]):
    for one in steps:
        parts = [*slices(one)]
        assert parts[0].began == one.at and parts[0].track == parts[-1].track == HEAD
        assert all(b.began == a.ended for a, b in itertools.pairwise(parts))


def test_stages_in_turn_have_bubbles_and_the_gap_between_steps_is_idle():
    made = profiled(merged([timeline(step(1, 100.0), step(2, 100.1))]), "m", 1)
    assert made.wall == pytest.approx(0.118) and made.idle == pytest.approx(0.082)
    for stage in made.stages:
        assert stage.busy == pytest.approx(0.011) and stage.bubble == pytest.approx(0.025) and stage.compute == pytest.approx(0.008)
    assert made.tokens_per_second == pytest.approx(2 / 0.118)


def test_a_stage_that_is_busy_with_another_step_has_no_bubble():
    alone = profiled(merged([timeline(step(1, 100.0))]), "m", 1)
    both = profiled(merged([timeline(step(1, 100.0), step(2, 100.006))]), "m", 1)
    assert both.stages[0].bubble / both.wall < alone.stages[0].bubble / alone.wall


def test_a_step_of_two_requests_counts_once():
    a, b = step(7, rows=2, tokens=1, own=1), step(7, rows=2, tokens=1, own=1)
    run = merged([timeline(a), timeline(b, id="cmpl-2")])
    (one,) = run.steps
    assert (one.rows, one.own, one.tokens) == (2, 2, 2) and decodes(one)


def test_a_prompt_does_not_decode():
    assert not decodes(step(rows=40, tokens=1)) and not decodes(step(rows=40, tokens=0))
    assert decodes(step(rows=9, own=1, tokens=1))  # the others are of requests that were not asked about


def test_steps_of_another_route_are_left_out_and_told():
    run = merged([timeline(step(1, epoch=1), nodes=("old", "b")), timeline(step(2, epoch=2), step(3, epoch=2), lost=5)])
    assert [one.number for one in run.steps] == [2, 3] and run.nodes == ("a", "b")
    assert (run.left_out, run.lost) == (1, 5)


def test_without_steps_there_is_no_profile():
    assert merged([]) == Run((), ())
    with pytest.raises(ValueError, match="no steps"):
        profiled(merged([]), "m", 1)


def test_parts_are_told_by_their_place():
    made = profiled(merged([timeline(step())]), "m", 1)
    found = {(part.track, part.index, part.part): part.seconds for part in made.parts}
    assert found["stage", 1, "compute"] == pytest.approx(0.004) and found["link", 2, "wire"] == pytest.approx(0.001)
    assert len(found) == 4 + 2 * 6 + 1


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8))
def test_covered_counts_each_second_once(found: list[tuple[int, int]]):
    spans = [(float(begin), float(begin + length)) for begin, length in found]
    assert covered(spans) == len({second for begin, length in found for second in range(begin, begin + length)})
