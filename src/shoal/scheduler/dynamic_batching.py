"""Sequences that wait for others, so that all of them are admitted together: throughput in exchange for the wait.

Only those wait that were never let in: one that was preempted, or that ran on another route, finds a slot as soon as there is one.
"""

from __future__ import annotations

from collections.abc import Iterable

from shoal.scheduler.limits import Batching
from shoal.scheduler.sequence import Sequence


class DynamicBatching:
    def __init__(self, batching: Batching) -> None:
        self.batching = batching

    def release(self, waiting: Iterable[Sequence], now: float) -> None:
        """Lets all of them in, if there are enough or one has waited for long enough."""
        held = self._held(waiting)
        due = self.due(held)
        if len(held) >= self.batching.size or (due is not None and now >= due):
            for sequence in held:
                sequence.held = False

    def due(self, waiting: Iterable[Sequence]) -> float | None:
        """When the first has waited for long enough; None: no one waits for others."""
        return min((sequence.came + self.batching.delay for sequence in self._held(waiting)), default=None)

    def _held(self, waiting: Iterable[Sequence]) -> list[Sequence]:
        return [sequence for sequence in waiting if sequence.held] if self.batching.delay else []
