"""Forecasts of made-up weeks: they follow the day and the week, and say themselves where they are of no use."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.errors import ConfigError
from shoal.serving.forecast import AHEAD, STEP, _filled, _steps, check_installed, forecast

DAY = 1440
MONDAY = 29_000_160  # minutes since 1970, and the begin of a day and of the made-up weeks

pytestmark = pytest.mark.slow


def rates(days: int, holidays: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """Requests a minute: two humps a day, less at weekends and on holidays."""
    minute = np.arange(days * DAY)
    hour, day = (minute / 60) % 24, minute // DAY
    shape = 3 + 120 * np.exp(-(((hour - 10.5) / 2) ** 2)) + 90 * np.exp(-(((hour - 15.5) / 2.5) ** 2))
    return shape * np.where((day % 7 >= 5) | np.isin(day, holidays), 0.3, 1.0)


def counted(rate: NDArray[np.float64], seed: int = 0) -> list[int | None]:
    return [int(count) for count in np.random.default_rng(seed).poisson(rate)]


def expected_at(minutes: list[int | None], until: int) -> NDArray[np.float64]:
    """Requests a minute in the steps that follow, of a forecast that is trusted."""
    told = forecast(minutes[:until], MONDAY + until)
    assert told is not None and told.trusted
    assert (told.start, told.step, len(told.rates)) == ((MONDAY + until) * 60, 600.0, AHEAD)
    return np.array(told.rates) * 60


def steps_of(rate: NDArray[np.float64], until: int) -> NDArray[np.float64]:
    return rate[until : until + AHEAD * STEP].reshape(AHEAD, STEP).mean(axis=1)


@pytest.mark.parametrize(("day", "hour"), [(28, 8), (33, 3), (33, 13)])  # a Monday after a weekend, a Saturday after workdays
def test_it_follows_the_day_and_the_week(day: int, hour: int) -> None:
    rate = rates(35)
    until = day * DAY + hour * 60
    found, right = expected_at(counted(rate), until), steps_of(rate, until)
    assert np.abs(found - right).mean() < 0.1 * right.mean() + 1


def test_a_holiday_a_missing_day_and_gaps_spoil_little() -> None:
    rate = rates(35, holidays=(16,))
    minutes = counted(rate)
    minutes[23 * DAY : 24 * DAY] = [None] * DAY
    for gap in range(0, 27 * DAY, 997):
        minutes[gap : gap + 7] = [None] * 7
    until = 30 * DAY + 9 * 60
    found, right = expected_at(minutes, until), steps_of(rate, until)
    assert np.abs(found - right).mean() < 0.15 * right.mean()


def test_after_two_weeks_it_knows_days_alone() -> None:
    rate = rates(6)
    rate = np.concatenate([rate[: 5 * DAY], rate[: 2 * DAY]])
    until = 6 * DAY + 9 * 60
    found, right = expected_at(counted(rate), until), steps_of(rate, until)
    assert np.abs(found - right).mean() < 0.15 * right.mean()


def test_traffic_without_order_is_told_to_be_so() -> None:
    """A random walk: the best guess is what is."""
    chance = np.random.default_rng(1)
    walk = np.repeat(np.exp(np.cumsum(chance.normal(0, 0.12, 28 * 24 * 6))), STEP)
    told = forecast(counted(np.minimum(walk / walk.max() * 5000, 5000)), MONDAY)
    assert told is not None
    assert not told.trusted or told.error > 0.9 * told.naive_error


def test_days_that_are_not_like_those_before_are_not_trusted() -> None:
    """The last three days are the nights of the days before."""
    rate = rates(28)
    rate[-3 * DAY :] = np.roll(rate[-8 * DAY : -5 * DAY], DAY // 2)
    told = forecast(counted(rate), MONDAY)
    assert told is not None
    assert not told.trusted


def test_five_days_are_no_ground() -> None:
    minutes = counted(rates(6))
    assert forecast([], MONDAY) is None
    assert forecast(minutes[: 5 * DAY], MONDAY) is None
    assert forecast(minutes[: 5 * DAY + STEP], MONDAY) is not None


def test_a_model_that_nobody_asks_for_has_nothing_to_expect() -> None:
    assert forecast([0] * (10 * DAY), MONDAY) is None


def test_days_in_which_nobody_counted_prove_nothing() -> None:
    told = forecast([*counted(rates(7)), *[None] * (3 * DAY)], MONDAY)
    assert told is not None
    assert not told.trusted


def test_steps_end_with_the_last_minute_that_is_known() -> None:
    for late in range(1, STEP):
        assert _steps([100] * late + [1] * 20).tolist() == [10.0, 10.0]


def test_steps_in_which_half_is_known_count_for_the_whole() -> None:
    assert _steps([*[2] * 5, *[None] * 5])[0] == 20.0
    assert np.isnan(_steps([*[2] * 4, *[None] * 6])[0])


def test_gaps_have_what_the_same_time_of_the_week_has_else_of_the_day() -> None:
    week = np.arange(7 * DAY // STEP, dtype=np.float64)
    counts = np.concatenate([week, week + 10, week + 2])
    counts[1000] = np.nan
    assert _filled(counts)[1000] == np.median([1000 + 10, 1000 + 2])
    day = np.arange(DAY // STEP, dtype=np.float64)
    counts = np.concatenate([day, day, day])
    counts[150:170] = np.nan
    assert _filled(counts).tolist() == np.concatenate([day, day, day]).tolist()
    assert _filled(np.array([np.nan, 4.0, np.nan])).tolist() == [4.0, 4.0, 4.0]


def test_without_statsmodels_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, *_: Any) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (check_installed, lambda: forecast(counted(rates(6)), MONDAY)):
        with pytest.raises(ConfigError, match=r"statsmodels, which is not installed; pip install 'shoal\[forecast\]'"):
            ask()


def test_it_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, shoal.serving.forecast; print('statsmodels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
