"""Sequences that wait for a slot: by class, and in a class in the order in which they arrived.

Nothing starves. Of a class that waits while none of it runs, the first in line rises one class every `ageing` steps: from then on it
counts as one of that class, and its early arrival puts it ahead there. Only the first one ages, so however many wait, a starving
class takes at most one slot per `ageing` steps from those above it. In the highest class, which is served in order of arrival, only a finite
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
        """Steps for which a class has waited with none of it running."""

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
        """Sequences that wait in a class."""
        return len(self._classes[priority])

    def ahead(self, priority: Priority) -> int:
        """Sequences that one of this class would find before it."""
        return sum(map(len, self._classes[: priority + 1]))

    def put(self, sequence: Sequence) -> None:
        """In its class, where its arrival puts it: behind all others, unless it was preempted."""
        insort(self._classes[sequence.priority], sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        waiting = self._classes[sequence.priority]
        del waiting[bisect_left(waiting, sequence.id, key=_arrival)]

    def age(self, running: Collection[Priority]) -> None:
        """A step was sent. running: classes of which sequences run."""
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
