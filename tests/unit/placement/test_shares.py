"""How much is elsewhere: few shares are tried, and what is found is nearly the best of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.placement.partition import Placement, StagePlan
from shoal.placement.shares import STEPS, Lacking, best, rank


def placement(speed: float, streams: bool = False) -> Placement:
    return Placement((StagePlan("a", 0, 1, 10, 1 / speed, 1.0, memory=5 if streams else 0),), 64, 0.0, 1)


class Hill:
    """Speeds that fall on both sides of a peak. Stages have room from `low` steps on, workers up to `high`."""

    def __init__(self, peak: int, low: int = 0, high: int = STEPS, disk: bool = False) -> None:
        self.peak, self.low, self.high, self.disk = peak, low, high, disk
        self.tried: list[int] = []

    def __call__(self, step: int) -> Placement | Lacking:
        self.tried.append(step)
        return self.at(step)

    def at(self, step: int) -> Placement | Lacking:
        if step > self.high:
            return Lacking.WORKERS
        if step < self.low:
            return placement(1 + step / 100, streams=True) if self.disk else Lacking.STAGES
        return placement(100 - abs(step - self.peak))

    def best(self, least: int = 0) -> Placement | None:
        found = [p for step in range(least, STEPS + 1) if isinstance(p := self.at(step), Placement)]
        return max(found, key=rank, default=None)


steps = st.integers(0, STEPS)


@given(steps, steps, steps, steps, st.booleans(), st.integers(0, 2))
def test_the_best_share_is_found_wherever_memory_ends(peak: int, guess: int, low: int, high: int, disk: bool, least: int) -> None:
    hill = Hill(peak, low, high, disk)
    found, wanted = best(hill, guess, least), hill.best(least)
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        assert found.streams == wanted.streams
        assert found.tokens_per_second == pytest.approx(wanted.tokens_per_second, rel=1e-9 if low <= guess <= high else 0.02)
    assert len(hill.tried) == len(set(hill.tried)) <= 12
    assert all(least <= step <= STEPS for step in hill.tried)


@given(steps)
def test_a_guess_that_will_do_is_tried_alone(guess: int) -> None:
    hill = Hill(8)
    assert best(hill, guess, fine=False) == hill.at(guess)
    assert hill.tried == [guess]


def test_the_only_share_with_room_for_all_is_found() -> None:
    for step in range(STEPS + 1):
        for guess in range(STEPS + 1):
            assert best(Hill(0, low=step, high=step), guess, fine=False) is not None


def test_what_reads_no_disk_is_better_than_what_is_faster() -> None:
    fast = placement(100, streams=True)
    assert rank(placement(1)) > rank(fast) > rank(replace(fast, slots=1, hop_seconds=1.0))
