"""The time of an answer depends on when its question came, and on nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.security.pairing_pace import ANSWER, left


@given(st.floats(0, 1e6), st.floats(0, 0.99 * ANSWER), st.floats(0, 0.99 * ANSWER))
def test_quick_and_slow_work_end_at_one_time(came: float, quick: float, slow: float) -> None:
    leaves = [came + work + left(came, came + work) for work in (quick, slow)]
    assert abs(leaves[0] - leaves[1]) < 1e-6 and abs(leaves[0] - came - ANSWER) < 1e-6


@given(st.floats(0, 60))
def test_work_that_outlasts_the_time_ends_at_a_multiple_of_it(work: float) -> None:
    waited = left(0.0, work)
    assert 0 <= waited <= ANSWER
    turns = (work + waited) / ANSWER
    assert abs(turns - round(turns)) < 1e-6 and round(turns) >= 1
