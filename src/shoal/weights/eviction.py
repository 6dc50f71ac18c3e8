"""Which unit goes when a slot is wanted.

A policy learns which units every visit to a layer needs, and holds an order of those that may go: units that are held and that
nobody needs at the moment. Units are named by layer and expert. Only `Oracle` asks that visits come in a given order.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol

from shoal.weights.unit import Unit


class Eviction(Protocol):
    def visit(self, layer: int, experts: Sequence[int]) -> None:
        """A step has reached `layer` and needs `experts`, each once, held or not. Comes before they are kept or room is made for them."""
        ...

    def offer(self, layer: int, experts: Sequence[int]) -> None:
        """These are held and not offered; they may go from now on."""
        ...

    def keep(self, layer: int, experts: Sequence[int]) -> None:
        """These may no longer go. Some may never have been offered."""
        ...

    def victim(self) -> Unit | None:
        """Takes the unit that is worth the least out of those offered. None: nothing is offered."""
        ...

    def worth(self, guess: Unit) -> bool:
        """Whether `guess`, which is not held and is expected to be needed soon, is worth more than what `victim` would take."""
        ...


class LeastRecent:
    """LRU: the unit that has not been needed for the longest time goes."""

    def __init__(self) -> None:
        self._offered: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._visits: dict[int, int] = {}

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        self._visits[layer] = self._visits.get(layer, 0) + 1

    def offer(self, layer: int, experts: Sequence[int]) -> None:
        visit = self._visits.get(layer, 0)
        self._offered.update(dict.fromkeys([(layer, expert) for expert in experts], visit))

    def keep(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            self._offered.pop((layer, expert), None)

    def victim(self) -> Unit | None:
        return Unit(*self._offered.popitem(last=False)[0]) if self._offered else None

    def worth(self, guess: Unit) -> bool:
        """Where the victim was not needed at its layer's last visit."""
        oldest = next(iter(self._offered.items()), None)
        return oldest is not None and oldest[1] < self._visits.get(oldest[0][0], 0)


class LeastFrequent:
    """LFU: the unit that was needed least often goes; of equals, the one offered last (the first would be a loop's next).

    half_life: the visits to a unit's layer after which a use counts half.
    """

    def __init__(self, half_life: float) -> None:
        self._decay = math.log(2) / half_life
        self._visits: dict[int, int] = {}
        self._frequency: dict[tuple[int, int], float] = {}
        """Logarithm of the sum of e^(decay · visit) over the uses. So it changes with a use alone."""
        self._order: list[tuple[float, int, tuple[int, int]]] = []
        """A heap of (frequency, turn, unit). An entry counts if `_offered` has its turn."""
        self._offered: dict[tuple[int, int], int] = {}
        self._turn = 0

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        visit = self._visits[layer] = self._visits.get(layer, 0) + 1
        now, frequency = visit * self._decay, self._frequency
        for expert in experts:
            frequency[layer, expert] = _one_more(frequency.get((layer, expert), -math.inf), now)

    def offer(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            unit = (layer, expert)
            self._turn -= 1
            self._offered[unit] = self._turn
            heappush(self._order, (self._frequency.get(unit, -math.inf), self._turn, unit))
        if len(self._order) > 2 * len(self._offered) + 64:
            self._order = [entry for entry in self._order if self._offered.get(entry[2]) == entry[1]]
            heapify(self._order)

    def keep(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            self._offered.pop((layer, expert), None)

    def victim(self) -> Unit | None:
        if self._least() is None:
            return None
        unit = heappop(self._order)[2]
        del self._offered[unit]
        return Unit(*unit)

    def worth(self, guess: Unit) -> bool:
        """As if it had been needed once more."""
        now = self._visits.get(guess.layer, 0) * self._decay
        least = self._least()
        return least is not None and least < _one_more(self._frequency.get(guess, -math.inf), now)

    def _least(self) -> float | None:
        """The frequency of the unit that goes next, which is then on top of the heap."""
        while self._order:
            frequency, turn, unit = self._order[0]
            if self._offered.get(unit) == turn:
                return frequency
            heappop(self._order)
        return None


def _one_more(frequency: float, now: float) -> float:
    """log(e^frequency + e^now)."""
    return now + math.log1p(math.exp(frequency - now))
