"""Belady's rule over a recorded trace: the bound that no eviction policy passes."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from shoal.weights.unit import Unit

NEVER = 1 << 62


class Oracle:
    """Evicts what is needed farthest in the future, which it knows: L. A. Belady, "A study of replacement algorithms", 1966.

    trace: the visits to come, in order, as (layer, experts). No policy loads less where the slots hold each visit's units at once.
    """

    def __init__(self, trace: Sequence[tuple[int, Sequence[int]]]) -> None:
        self._trace = trace
        self._position = 0
        self._next: dict[tuple[int, int], int] = {}
        """When a unit is needed next, as a position in the trace."""
        self._after: list[list[int]] = [[]] * len(trace)
        """Per visit: when each of its experts is needed the time after."""
        for position in range(len(trace) - 1, -1, -1):
            layer, experts = trace[position]
            self._after[position] = [self._next.get((layer, expert), NEVER) for expert in experts]
            self._next.update(dict.fromkeys([(layer, expert) for expert in experts], position))
        self._order: list[tuple[int, int, int]] = []
        """A heap of (-next use, layer, expert); an entry counts if the unit is offered and its next use still the same."""
        self._offered: set[tuple[int, int]] = set()

    def visit(self, layer: int, experts: Sequence[int]) -> None:
        """Raises ValueError if the trace has something else here."""
        if self._position == len(self._trace) or self._trace[self._position] != (layer, experts):
            raise ValueError(f"visit {self._position} is not the one of the trace")
        for expert, after in zip(experts, self._after[self._position], strict=True):
            self._next[layer, expert] = after
        self._position += 1

    def offer(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            self._offered.add((layer, expert))
            heappush(self._order, (-self._next.get((layer, expert), NEVER), layer, expert))

    def keep(self, layer: int, experts: Sequence[int]) -> None:
        self._offered.difference_update([(layer, expert) for expert in experts])

    def victim(self) -> Unit | None:
        if self._farthest() is None:
            return None
        _, layer, expert = heappop(self._order)
        self._offered.remove((layer, expert))
        return Unit(layer, expert)

    def worth(self, guess: Unit) -> bool:
        farthest = self._farthest()
        return farthest is not None and farthest > self._next.get(guess, NEVER)

    def _farthest(self) -> int | None:
        """When the unit that goes next is needed; it is then on top of the heap."""
        while self._order:
            when, layer, expert = self._order[0]
            if (layer, expert) in self._offered and -when == self._next.get((layer, expert), NEVER):
                return -when
            heappop(self._order)
        return None
