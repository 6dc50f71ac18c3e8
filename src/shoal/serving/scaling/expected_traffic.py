"""What a forecast says about a model's requests, as the policy reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpectedTraffic:
    """start: by the clock that is asked; step: seconds of each figure. rates: requests per second, means of their steps.

    error, naive_error: mean absolute errors over the last days, of this method and of the better of two naive ones (as just now; as a week
    ago), in requests per second.
    """

    start: float
    step: float
    rates: tuple[float, ...]
    error: float
    naive_error: float

    @property
    def trusted(self) -> bool:
        return self.error < self.naive_error

    def highest(self, first: float, last: float) -> float | None:
        """Requests per second between two moments: means of steps, straight lines between their middles. None: it does not reach so far."""
        if not self.start <= first <= last <= self.start + self.step * len(self.rates):
            return None
        inside = [rate for i, rate in enumerate(self.rates) if first < self.start + self.step * (i + 0.5) < last]
        return max([self._at(first), self._at(last), *inside])

    def _at(self, moment: float) -> float:
        place = min(max((moment - self.start) / self.step - 0.5, 0.0), len(self.rates) - 1.0)
        before = int(place)
        after = min(before + 1, len(self.rates) - 1)
        return self.rates[before] + (self.rates[after] - self.rates[before]) * (place - before)
