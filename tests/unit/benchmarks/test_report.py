"""Figures beside a peer's: what a goal that is missed does."""

from __future__ import annotations

import pytest

from benchmarks.report import Figure, check, table

MET = Figure("decode", 1.5, [150.0, 160.0, 20.0], [100.0, 100.0, 90.0])
MISSED = Figure("prefill", 3.0, [200.0], [100.0])


def test_the_ratio_is_that_of_the_medians() -> None:
    assert MET.ratio == 1.5


def test_a_table_tells_what_falls_short() -> None:
    rows = table("Both", [MET, MISSED]).splitlines()[4:]
    assert ["ok" in row for row in rows] == [True, False]
    assert ["SHORT" in row for row in rows] == [False, True]


def test_a_missed_goal_fails_the_command_where_that_is_wanted() -> None:
    check([MET, MISSED], wanted=False)
    check([MET], wanted=True)
    with pytest.raises(SystemExit, match=r"prefill: 2\.00 x, the goal is 3\.0 x"):
        check([MET, MISSED], wanted=True)
