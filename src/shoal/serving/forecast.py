"""A model's requests in the next two hours, by those of the last weeks.

The square roots of the requests in 10 minutes (so that the noise of counts is even) are split by MSTL (Bandara, Hyndman, Bergmeir 2021)
into a part of the day, one of the week and the rest, which exponential smoothing follows. Both are statsmodels' (the extra
`shoal[forecast]`). How good that is, is tried on the last days, each predicted by what was known before it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ConfigError
from shoal.serving.scaling.expected_traffic import ExpectedTraffic

STEP = 10
"""Minutes of a figure."""
AHEAD = 12
"""Figures of a forecast."""
_DAY = 24 * 60 // STEP
_WEEK = 7 * _DAY
_TRIED = 3
"""Days on which it is tried."""

Series = NDArray[np.float64]


def forecast(minutes: Sequence[int | None], until: int) -> ExpectedTraffic | None:
    """From the end of what is known on; None: no more than five days are known, or nobody has asked. Takes half a second of
    a processor, most of it with the interpreter's lock: for another process than the one that serves.

    minutes: requests of each, None: nobody counted; until: the minute after the last, since 1970.
    Raises ConfigError without statsmodels.
    """
    counts = _steps(minutes)
    known = np.isfinite(counts)
    if len(counts) <= (2 + _TRIED) * _DAY or not counts[known].any():
        return None
    roots = np.sqrt(_filled(counts))
    error, naive = _tried(roots, known)
    seasons = _Seasons.of(roots)
    level, noise = seasons.level(roots)
    ahead = np.maximum(level[-1] + seasons.ahead(len(roots), AHEAD), 0.0) ** 2 + noise
    second = STEP * 60.0
    return ExpectedTraffic(until * 60.0, second, tuple(float(rate) for rate in ahead / second), error / second, naive / second)


def check_installed() -> None:
    """Raises ConfigError without statsmodels."""
    if importlib.util.find_spec("statsmodels") is None:
        raise ConfigError("--forecast needs statsmodels, which is not installed; pip install 'shoal[forecast]'")


def _steps(minutes: Sequence[int | None]) -> Series:
    """Requests in 10 minutes each, of which the last ends with the last minute; NaN where fewer than half of the minutes are known."""
    whole = len(minutes) // STEP * STEP
    table = np.array([np.nan if count is None else count for count in minutes[len(minutes) - whole :]]).reshape(-1, STEP)
    known = np.isfinite(table).sum(axis=1)
    return np.where(known * 2 >= STEP, np.nansum(table, axis=1) * STEP / np.maximum(known, 1), np.nan)


def _filled(counts: Series) -> Series:
    """Gaps have the median of the same time of the week, else of the day, else of all."""
    filled = counts.copy()
    for period in (_WEEK, _DAY, 1):
        for at in np.flatnonzero(~np.isfinite(filled)):
            same = counts[at % period :: period]
            same = same[np.isfinite(same)]
            if len(same):
                filled[at] = np.median(same)
    return np.nan_to_num(filled)


@dataclass(frozen=True)
class _Seasons:
    """Parts of the day, and of the week, of the last period of each; end: of the series."""

    parts: tuple[Series, ...]
    end: int
    inside: Series
    """Sum of the parts over the series."""

    @staticmethod
    def of(roots: Series) -> _Seasons:
        """Of the week if there are more than two: MSTL needs more than two periods."""
        periods = [_DAY, _WEEK] if len(roots) > 2 * _WEEK else [_DAY]
        jump = _DAY // 4  # smooth curves are computed at every sixth hour, and lines drawn between: as good, in a thirtieth of the time
        options = {"seasonal_deg": 0, "trend_jump": jump, "low_pass_jump": jump, "inner_iter": 1}  # MSTL repeats it, too
        found = _statsmodels("tsa.seasonal").MSTL(roots, periods=periods, stl_kwargs=options).fit()
        parts = np.asarray(found.seasonal, dtype=np.float64).reshape(len(roots), len(periods))
        return _Seasons(tuple(parts[-period:, i] for i, period in enumerate(periods)), len(roots), parts.sum(axis=1))

    def ahead(self, begin: int, count: int) -> Series:
        """Sum of the parts from `begin` on, which is not before the end of the series."""
        at = np.arange(begin, begin + count) - self.end
        return np.sum([part[at % len(part)] for part in self.parts], axis=0)

    def level(self, roots: Series) -> tuple[Series, float]:
        """The rest of a series that may go on after the end, as it was expected one step before: one more figure than the series has. And
        the variance of what came instead."""
        rest = roots - np.concatenate([self.inside, self.ahead(self.end, len(roots) - self.end)])
        model = _statsmodels("tsa.holtwinters").SimpleExpSmoothing
        share = float(model(rest[: self.end], initialization_method="estimated").fit().params["smoothing_level"])
        fitted = model(rest, initialization_method="estimated").fit(smoothing_level=max(share, 0.02), optimized=False)
        expected = np.append(fitted.fittedvalues, fitted.forecast(1))
        return expected, float(np.var(rest - expected[:-1]))


def _tried(roots: Series, known: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean absolute errors of one step ahead on the last days, in requests per step: this method's, and the better naive one's."""
    errors: list[Series] = []
    begin = len(roots) - _TRIED * _DAY
    before = _WEEK if begin >= _WEEK else _DAY
    for day in range(begin, len(roots), _DAY):
        seasons = _Seasons.of(roots[:day])
        level, noise = seasons.level(roots[: day + _DAY])
        expected = np.maximum(level[day : day + _DAY] + seasons.ahead(day, _DAY), 0.0) ** 2 + noise
        at = np.arange(day, day + _DAY)
        came = roots**2
        three = np.array([expected, came[at - 1], came[at - before]])
        errors.append(np.abs(three - came[at])[:, known[at]])
    each = np.concatenate(errors, axis=1)
    if not each.shape[1]:
        return np.inf, np.inf
    ours, just_now, then = (float(error) for error in each.mean(axis=1))
    return ours, min(just_now, then)


def _statsmodels(module: str) -> Any:
    try:
        return importlib.import_module(f"statsmodels.{module}")
    except ImportError as fault:
        raise ConfigError("--forecast needs statsmodels, which is not installed; pip install 'shoal[forecast]'") from fault
