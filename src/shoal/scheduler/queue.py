"""Sequences that wait for a slot: by class, and within a class in order of arrival.

Nothing starves. If a class waits while none of its sequences run, its first in line rises one class every `ageing` steps. From then on it
counts as a member of that class, where its early arrival puts it ahead. Only the first in line ages, so however many wait, a starving
class takes at most one slot per `ageing` steps from those above it. The highest class is served in order of arrival, so only a finite
number can be ahead.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

from shoal.request import Priority
from shoal.scheduler.sequence import Sequence


def _arrival(sequence: Sequence) -> int:
    return sequence.id


class WaitingQueue:
    def __init__(self, ageing: int) -> None:
        """ageing: steps that a class waits before its first sequence rises."""
        self._ageing = ageing
        self._classes: list[list[Sequence]] = [[] for _ in Priority]
        self._starved = [0] * len(Priority)
        """Steps for which each class has waited while none of its sequences ran."""

    def __len__(self) -> int:
        return sum(map(len, self._classes))

    def __iter__(self) -> Iterator[Sequence]:
        for waiting in self._classes:
            yield from waiting

    def __contains__(self, sequence: Sequence) -> bool:
        return any(sequence in waiting for waiting in self._classes)

    @property
    def first(self) -> Sequence | None:
        return next(iter(self), None)

    def of(self, priority: Priority) -> int:
        """How many sequences wait in a class."""
        return len(self._classes[priority])

    def ahead(self, priority: Priority) -> int:
        """How many sequences would be ahead of a new one of this class."""
        return sum(map(len, self._classes[: priority + 1]))

    def put(self, sequence: Sequence) -> None:
        """Puts a sequence in its class by arrival: behind all others, unless it was preempted."""
        insort(self._classes[sequence.priority], sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        waiting = self._classes[sequence.priority]
        del waiting[bisect_left(waiting, sequence.id, key=_arrival)]

    def age(self, running: Collection[Priority]) -> None:
        """Call it after each sent step. running: the classes of the running sequences."""
        for priority in Priority:
            if not self._classes[priority] or priority in running:
                self._starved[priority] = 0
                continue
            self._starved[priority] += 1
            if self._starved[priority] >= self._ageing and priority > Priority.URGENT:
                self._starved[priority] = 0
                first = self._classes[priority].pop(0)
                first.priority = Priority(priority - 1)
                self.put(first)
